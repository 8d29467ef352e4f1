"""Rows to train on: of every kind, reproducible, true, in words that evaluation never uses."""

import re

import pytest

from glm2core.lines.records import generate_conversations
from glm2core.lines.rounds import conversations
from glm2core.lines.wordings import EVALUATION, TRAINING
from glm2core.lines.words import pool, split_of
from glm2core.params import GeneratedLines
from tests.lines.test_facts import KINDS

SPEC = GeneratedLines(conversations=40, lines=[5, 30], questions=6, kinds=KINDS, seed=3)  # type: ignore[arg-type]
SIGNS = re.compile(r"\b(?:\d{7}|[0-9a-f]{8}-[0-9a-f-]{27}|[A-Z]{5})\b")


def test_rows_of_lines_alone_are_what_they_were() -> None:
    spec = SPEC.model_copy(update={"kinds": ["lines"], "hard_negatives": 0.5, "repeats": 0.3})
    assert list(conversations(spec)) == list(generate_conversations(spec))


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS])
def test_rows_are_reproducible_and_answered_from_their_record(kinds: list[str]) -> None:
    spec = SPEC.model_copy(update={"kinds": kinds, "hard_negatives": 0.5, "repeats": 0.3})
    rows = list(conversations(spec))
    assert rows == list(conversations(spec))
    assert rows[:3] == list(conversations(spec.model_copy(update={"conversations": 3})))
    assert len({row[0]["content"] for row in rows}) == len(rows)
    for messages in rows:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert 2 <= len(messages) <= 2 * 7  # coded words are one more
        record = messages[0]["content"]
        for answer in messages[1::2]:
            for part in re.split(r"(?<=[.;\d]) ", answer["content"]):
                assert all(word in record for word in part.split())


def test_several_kinds_share_a_record() -> None:
    mixed = [m for m in conversations(SPEC.model_copy(update={"lines": [40]})) if len(m) > 6]
    assert any("line " in m[0]["content"] and SIGNS.search(m[0]["content"]) for m in mixed)
    assert len({len(m) for m in mixed}) > 1


def test_no_word_number_or_name_of_evaluation_is_trained_on() -> None:
    evaluation = pool("evaluation")
    held_out = {*evaluation.adjectives, *evaluation.nouns}
    text = "\n".join(m["content"] for row in conversations(SPEC) for m in row)
    signs = set(SIGNS.findall(text))
    assert len(signs) > 200
    assert {split_of(sign) for sign in signs} == {"training"}
    keys = {word for key in re.findall(r"\b[a-z]+-[a-z-]+\b", text) for word in key.split("-")}
    assert len(keys) > 100 and not keys & held_out
    assert not any(sentence in text for sentence in EVALUATION.noise)


def test_evaluations_wording_is_trained_on_where_that_is_asked_for() -> None:
    headers = {w.header for w in TRAINING}
    for wording, expected in (("other", headers), ("all", headers | {EVALUATION.header})):
        spec = SPEC.model_copy(update={"conversations": 200, "kinds": ["vt"], "wording": wording})
        starts = {row[0]["content"].split("\n\n")[0] + "\n\n" for row in conversations(spec)}
        assert {start for start in starts if start in headers | {EVALUATION.header}} == expected


def test_a_record_is_as_long_as_so_many_lines_are() -> None:
    for kind in KINDS[1:]:
        sizes = []
        for lines in (10, 40):
            spec = SPEC.model_copy(update={"kinds": [kind], "lines": [lines]})
            sizes.append(sum(len(row[0]["content"]) for row in conversations(spec)) / SPEC.conversations)
        assert 2.2 < sizes[1] / sizes[0] < 4.5, kind


def test_half_of_the_records_are_in_wordings_of_their_own() -> None:
    spec = SPEC.model_copy(update={"conversations": 300, "kinds": ["niah_multikey_2"]})
    fixed = tuple(w.header for w in TRAINING)
    invented = [row for row in conversations(spec) if not row[0]["content"].startswith(fixed)]
    assert 110 < len(invented) < 190
    assert len({row[0]["content"].split(".")[0] for row in invented}) == len(invented)
    for row in invented:
        assert not any(sign in message["content"] for message in row for sign in "{}")
        lines = row[0]["content"].splitlines()
        assert all(answer["content"] in lines for answer in row[1::2])
