"""Rows of text analysis: their answers stand in them, from a seed, and held-out entities are in no training row."""

import random
import re
from collections import Counter

import pytest

from glm2core.analysis.entities import LANGUAGES, Language, pool, split_of
from glm2core.analysis.rows import KINDS, AnalysisRow, Kind, generate_rows, make_row
from glm2core.conversation import ASSISTANT, USER
from glm2core.params import AnalysisKinds, GeneratedAnalysis

SPEC = GeneratedAnalysis(rows=600, held_out_rows=300)
EVERY_KIND = [(kind, language) for kind in KINDS for language in LANGUAGES]


def rows_of(kind: Kind, language: Language, count: int = 200) -> list[AnalysisRow]:
    return [make_row(random.Random(f"{number}"), kind, language, "held out") for number in range(count)]


def asked_and_answered(row: AnalysisRow) -> list[tuple[str, str]]:
    """Each answer with all that stands before it."""
    messages = row.conversation.messages
    return [
        ("\n".join(message["content"] for message in messages[:place]), message["content"])
        for place, message in enumerate(messages)
        if message["role"] == ASSISTANT
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_entity_is_in_both_pools(language: Language) -> None:
    train, held_out = pool(language, "training"), pool(language, "held out")
    for name in ("givens", "places", "amounts", *(["families"] if language == "en" else [])):
        ours, theirs = getattr(train, name), getattr(held_out, name)
        assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs) >= 750
        assert set(ours).isdisjoint(theirs)
    drawn = {split: pool(language, split).draw(random.Random(0), "date", 500) for split in ("training", "held out")}  # type: ignore[arg-type]
    assert set(drawn["training"]).isdisjoint(drawn["held out"])


def test_no_answer_of_a_held_out_row_stands_in_a_training_row() -> None:
    rows = list(generate_rows(SPEC))
    read = "\n".join(m["content"] for row in rows if row.split == "training" for m in row.conversation.messages)
    held_out = [row for row in rows if row.split == "held out" and row.kind in ("extract", "tasks", "dialogue")]
    answers = {row.conversation.messages[-1]["content"] for row in held_out}
    assert len(answers) > 100
    # Not inside a longer number or name either
    assert [a for a in answers if re.search(rf"(?<![\w]){re.escape(a)}(?![\w])", read)] == []


def test_the_same_seed_gives_the_same_rows_and_more_rows_change_none() -> None:
    rows = list(generate_rows(SPEC))
    assert rows == list(generate_rows(SPEC))
    more = list(generate_rows(SPEC.model_copy(update={"rows": 700})))
    assert rows[:600] == more[:600] and rows[600:] == more[700:]
    other = list(generate_rows(SPEC.model_copy(update={"seed": 1})))
    texts = {str(row.conversation) for row in rows}
    assert sum(str(row.conversation) in texts for row in other) < 5


def test_shares_of_kinds_and_languages() -> None:
    counts = Counter((row.kind, row.language) for row in generate_rows(GeneratedAnalysis(rows=2000, held_out_rows=0)))
    assert len(counts) == 2 * len(KINDS)
    assert 0.25 < sum(counts["extract", language] for language in LANGUAGES) / 2000 < 0.35
    kinds = AnalysisKinds(extract=0, texts=0, tasks=0, judgement=1, dialogue=0)
    only = list(generate_rows(GeneratedAnalysis(rows=50, kinds=kinds, chinese=1.0), held_out=False))
    assert {(row.kind, row.language, row.split) for row in only} == {("judgement", "zh", "training")}


@pytest.mark.parametrize(("kind", "language"), EVERY_KIND)
def test_rows_take_turns_and_are_worded_in_several_ways(kind: Kind, language: Language) -> None:
    rows = rows_of(kind, language)
    for row in rows:
        messages = row.conversation.messages
        assert [m["role"] for m in messages] == [USER, ASSISTANT] * (len(messages) // 2)
        assert all(m["content"].strip() for m in messages)
        assert not re.search(r"[{}]", str([m["content"] for m in messages]))
    rounds = {len(row.conversation.messages) // 2 for row in rows}
    assert rounds == {"tasks": {2, 3}, "dialogue": {3, 4, 5}}.get(kind, {1})
    entities = re.compile(r"[A-Z]\w+|\d+" if language == "en" else r"[\d\w]{3}(?=[的住花付生])|\d+")
    wordings = {entities.sub("", row.conversation.messages[0]["content"].split("\n")[0]) for row in rows}
    assert len(wordings) >= 6


@pytest.mark.parametrize(("kind", "language"), [(k, lang) for k, lang in EVERY_KIND if k in ("extract", "tasks")])
def test_what_is_extracted_stands_in_the_text(kind: Kind, language: Language) -> None:
    for row in rows_of(kind, language):
        assert all(answer in before for before, answer in asked_and_answered(row))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dialogue_asks_for_what_was_told_rounds_ago(language: Language) -> None:
    for row in rows_of("dialogue", language):
        messages = row.conversation.messages
        told = [place for place, m in enumerate(messages[:-1]) if messages[-1]["content"] in m["content"]]
        assert told and told[0] <= len(messages) - 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_task_over_several_texts_is_answered_from_all_of_them(language: Language) -> None:
    listed = 0
    for row in rows_of("texts", language):
        question, answer = (m["content"] for m in row.conversation.messages)
        texts = question.split("\n")[1:]
        parts = re.split("[;；] ?", answer)
        if len(parts) > 1:
            listed += 1
            assert all(part in text for part, text in zip(parts, texts, strict=True))
        elif number := re.fullmatch(r"Text (\d)|第(\d)段", answer):
            place = int(number[1] or number[2]) - 1
            name = max(re.findall(r"[A-Z]\w+ [A-Z]\w+|[^\s，。？：]+", texts[place].split(": ")[-1]), key=len)
            assert sum(name in text for text in texts) == 1
        else:
            assert sum(answer in text for text in texts) == 1
    assert listed > 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_judgement_puts_text_and_claim_side_by_side_and_concludes(language: Language) -> None:
    said = {"en": r"The text says (.+), the claim says (.+)\.", "zh": r"文中是(.+)，句中是(.+)。"}[language]
    conclusions: Counter[str] = Counter()
    for row in rows_of("judgement", language):
        question, answer = (m["content"] for m in row.conversation.messages)
        found = re.fullmatch(rf" EXPLAIN: {said} CONCLUSION: (.+)", answer)
        assert found is not None
        value, claimed, conclusion = found.groups()
        claim, text = question.split("\n")
        assert value in text and claimed in claim
        assert (conclusion in ("yes", "对")) is (value == claimed)
        conclusions[conclusion] += 1
    assert min(conclusions.values()) > 60 and len(conclusions) == 2


def test_a_hash_decides_where_an_entity_belongs() -> None:
    assert {split_of(str(number)) for number in pool("en", "held out").amounts} == {"held out"}
