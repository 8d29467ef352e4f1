"""RULER's kinds: every fact is in its record, can be told from all others, and is answered by its references."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from typing import get_args

import pytest

from glm2core.lines.draws import Draws
from glm2core.lines.facts import HOPS, LEAST_CODED_LINES, coded_lines, facts, haystack, haystack_sort
from glm2core.lines.mixture import Mixture, places
from glm2core.lines.wordings import EVALUATION, TRAINING, Wording
from glm2core.lines.words import split_of
from glm2core.params.section import FactKind

KINDS: list[str] = list(get_args(FactKind))


def drawn(draws: Draws) -> Iterator[str]:
    for make in (draws.number, draws.uuid, draws.variable, draws.coded):
        yield from (make() for _ in range(200))


@pytest.mark.parametrize("alike", [False, True])
def test_no_number_uuid_or_name_of_one_split_is_in_the_other(alike: bool) -> None:
    found = {split: list(drawn(Draws(random.Random(5), split, alike=alike))) for split in ("training", "evaluation")}
    for split, some in found.items():
        assert {split_of(text) for text in some} == {split}
        assert len(set(some)) == len(some)
    assert not set(found["training"]) & set(found["evaluation"])


def test_alike_draws_nearly_collide() -> None:
    numbers, alike = ([draws.number() for _ in range(100)] for draws in (plain(), plain(alike=True)))
    starts = [Counter(number[:4] for number in some).most_common(1)[0][1] for some in (numbers, alike)]
    assert starts[0] <= 2 and starts[1] > 4
    draws = plain(alike=True)
    adjectives = Counter(draws.line().adjective for _ in range(100))
    assert len(adjectives) <= 24


def plain(*, alike: bool = False) -> Draws:
    return Draws(random.Random(1), "training", alike=alike)


@pytest.mark.parametrize("name", [field.name for field in fields(Wording) if field.name != "noise"])
def test_no_wording_to_train_with_is_that_of_evaluation(name: str) -> None:
    own = [getattr(wording, name) for wording in TRAINING]
    assert getattr(EVALUATION, name) not in own
    assert len(set(own)) == len(own)


def test_no_sentence_is_in_both_splits() -> None:
    assert not set(EVALUATION.noise) & {sentence for wording in TRAINING for sentence in wording.noise}


@pytest.mark.parametrize("wording", [EVALUATION, *TRAINING])
@pytest.mark.parametrize("kind", KINDS)
def test_every_fact_is_in_its_record_once_and_answered_by_it(kind: str, wording: Wording) -> None:
    rng = random.Random(7)
    draws = Draws(rng, "evaluation")
    made = list(islice(facts(kind, draws, wording), 6))
    mixture = Mixture([(fact, places(rng, fact)) for fact in made], [kind], draws, wording)
    text, asked = mixture.record(40)
    lines = text.removeprefix(wording.header).splitlines()
    assert text == mixture.text(40)
    assert len(asked) == {"niah_single_1": 1, "fwe": 1, "topics": 1}.get(kind, 6)
    assert len({entry.fact.question for entry in asked}) == len(asked)
    for entry in asked:
        fact = entry.fact
        assert all(lines.count(line) == 1 for line in fact.lines)
        assert [line for line in lines if line in fact.lines] == list(fact.lines)  # in their order
        assert all(reference in fact.answer for reference in fact.references)
        if kind == "fwe":
            continue
        for reference in fact.references:
            (line,) = {line for line in lines if re.search(rf"\b{reference}\b", line) and reference in fact.answer} & {
                line for line in lines if line in fact.answer and defines(line, reference)
            }
            assert line in fact.answer
        if kind == "topics":
            assert lines.index(fact.lines[0]) <= 1 and entry.depth is None and entry.candidates == 5
        elif len(fact.references) == 1:
            assert entry.depth == (lines.index(fact.lines[0]) + 0.5) / (len(lines) - 1)
        else:
            assert entry.depth is None


def defines(line: str, reference: str) -> bool:
    """Whether a line says what is asked for; a chain names each variable twice but its last."""
    return reference in line and not re.search(rf"(=|to|gets) (VAR )?{reference};?$", line)


def test_a_chain_is_followed_from_its_value_and_nothing_else_has_it() -> None:
    made = list(islice(facts("vt", plain(), EVALUATION), 9))
    assert [fact.kind for fact in made] == [f"vt_{hops}" for hops in 3 * HOPS]
    assert next(facts("vt", plain(), EVALUATION, 2)).kind == "vt_4"
    assigned = dict(re.fullmatch(r"let (\w+) = (\w+)", line).groups() for fact in made for line in fact.lines)  # type: ignore[union-attr]
    for fact in made:
        value = re.findall(r"\d{5}", fact.question)[0]
        held = {value}
        while more := {name for name, of in assigned.items() if of in held} - held:
            held |= more
        assert held - {value} == set(fact.references)
        assert len(fact.references) == len(fact.lines) == int(fact.kind[-1]) + 1


def test_values_of_a_key_are_all_of_that_key() -> None:
    draws = plain()
    lines = [line for fact in islice(facts("niah_multivalue", draws, EVALUATION), 5) for line in fact.lines]
    lines += islice(haystack("number", draws, EVALUATION, invented=False), 100)
    fact = next(facts("niah_multivalue", draws, EVALUATION))
    lines += fact.lines
    key = re.findall(r"numbers of (\S+)\?", fact.question)[0]
    assert [line for line in lines if f" {key} " in line] == list(fact.lines)
    assert len(set(fact.references)) == 4 and all(re.fullmatch(r"\d{7}", value) for value in fact.references)


@pytest.mark.parametrize("seed", range(20))
def test_topics_divide_their_record_into_parts(seed: int) -> None:
    rng = random.Random(seed)
    fact = next(facts("topics", plain(), EVALUATION))
    assert len(set(fact.lines)) == len(fact.lines) == 5
    drawn_places = places(rng, fact, 3, 4)
    assert all(part / 5 <= place < (part + 0.2) / 5 for part, place in enumerate(drawn_places))


def test_several_keys_are_asked_in_their_own_order_and_lines_are_shared() -> None:
    made = list(islice(facts("niah_multiquery", plain(), EVALUATION), 8))
    value_of = dict(re.findall(r"number of (\S+) is (\d+)\.", " ".join(line for f in made for line in f.lines)))
    assert len(value_of) == 4 + 7
    for fact in made:
        keys = re.findall(r"[\w-]+-[\w-]+", fact.question)
        assert [value_of[key] for key in keys] == list(fact.references)


@pytest.mark.parametrize("count", [*range(LEAST_CODED_LINES, 60), 500, 3000])
def test_the_three_frequent_words_are_more_frequent_than_all_others(count: int) -> None:
    draws = plain()
    words = [draws.coded() for _ in range(64)]
    lines, fact = coded_lines(3, words, EVALUATION, count)
    assert len(lines) == count
    counted = Counter(word for line in lines for word in line.removeprefix("code: ").split())
    assert sum(counted.values()) == 6 * count
    assert counted.pop("...") > 2 * count
    assert fact.references == tuple(word for word, _ in counted.most_common(3)) == tuple(words[:3])
    frequencies = [number for _, number in counted.most_common(4)] + [0]
    assert frequencies[2] > frequencies[3]


def test_facts_hide_among_their_like_or_among_noise() -> None:
    sorts = {kind: haystack_sort(kind) for kind in KINDS}
    assert sorts["niah_multikey_3"] == "token" and sorts["niah_multikey_2"] == "number" and sorts["lines"] == "line"
    assert sorts["niah_single_1"] == sorts["vt"] == sorts["niah_multivalue"] == sorts["niah_multiquery"] == "noise"
    mixture = Mixture([], ["lines", "niah_multikey_3", "vt"], plain(), EVALUATION)
    lines = mixture.text(90).removeprefix(EVALUATION.header).splitlines()
    sizes = [
        sum(map(len, some))
        for some in (
            [line for line in lines if line.startswith("line ")],
            [line for line in lines if "access token" in line],
            [line for line in lines if line in EVALUATION.noise],
        )
    ]
    assert max(sizes) < 1.3 * min(sizes)
