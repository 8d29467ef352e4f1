"""The lines generator: LongEval's wording to the letter, disjoint splits, exact budgets."""

import json
import os
import random
import re
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm2core.lines import records
from glm2core.lines.words import pool
from glm2core.params import GeneratedLines

SHARED = Path(os.environ.get("GLM2CORE_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
LONGEVAL = SHARED / "data/longeval/lines/200_lines.jsonl"


@pytest.mark.skipif(not LONGEVAL.exists(), reason="LongEval's cases are not here")
def test_wording_is_longevals_to_the_letter() -> None:
    for row in map(json.loads, LONGEVAL.read_text().splitlines()):
        record = records.parse_record(row["prompt"])
        key, index = row["random_idx"]
        assert records.record_text(record) + records.RECORD_OVER + records.question_text(key) == row["prompt"]
        assert record[index].key == key and record[index].value == row["expected_number"]


def test_training_and_evaluation_share_no_word_and_no_value() -> None:
    training, evaluation = pool("training"), pool("evaluation")
    for of in ("adjectives", "nouns", "values"):
        assert not set(getattr(training, of)) & set(getattr(evaluation, of))
    parts = [{part for noun in p.nouns for part in noun.split("-")} for p in (training, evaluation)]
    assert not parts[0] & parts[1]
    assert min(len(evaluation.adjectives), len(evaluation.nouns)) >= 900
    assert min(training.values) < 10 and max(training.values) > 49_900


SPEC = GeneratedLines(conversations=20, lines=[5, 40], questions=7, seed=3)


def test_any_letter_may_follow_any_other_in_a_key_that_is_trained_on() -> None:
    """Else copying leans on the order of invented words, and LongEval's real ones are repeated wrongly."""
    words = {split: (*pool(split).adjectives, *pool(split).nouns) for split in ("training", "evaluation")}
    pairs = {split: {"".join(two) for word in some for two in pairwise(word)} for split, some in words.items()}
    letters = string.ascii_lowercase
    assert {a + b for a in letters for b in letters} <= pairs["training"]
    assert len(pairs["evaluation"]) < len(letters) ** 2 / 1.5
    # "swift-mother-in-law": what follows a hyphen of such a key is not found by the hyphen alone
    assert any(adjective.count("-") for adjective in pool("training").adjectives)


def test_conversations_are_reproducible_and_true() -> None:
    conversations = list(records.generate_conversations(SPEC))
    assert conversations == list(records.generate_conversations(SPEC))
    assert conversations[:3] == list(records.generate_conversations(SPEC.model_copy(update={"conversations": 3})))
    for messages in conversations:
        record = {line.key: line for line in records.parse_record(messages[0]["content"])}
        assert len(record) in (5, 40)
        assert len(messages) == 2 * min(7, len(record))
        asked = []
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert (question["role"], answer["role"]) == ("user", "assistant")
            asked.append(re.findall(r"in line (\S+)\?", question["content"])[0])
            assert answer["content"] == record[asked[-1]].text
        assert len(set(asked)) == len(asked)


def test_repeats_and_hard_negatives_change_the_record() -> None:
    repeated = SPEC.model_copy(update={"lines": [40], "repeats": 1.0})
    for messages in records.generate_conversations(repeated):
        record = records.parse_record(messages[0]["content"])
        assert len(record) == 40 and len({line.key for line in record}) == 20
    hard = SPEC.model_copy(update={"lines": [40], "hard_negatives": 1.0})
    known = frozenset(pool("training").values)
    for messages in records.generate_conversations(hard):
        record = records.parse_record(messages[0]["content"])
        assert len({line.key for line in record}) == 40
        assert sum(records.colliding(record)) >= 38
        starts = Counter(str(line.value)[:3] for line in record)
        assert sum(count for count in starts.values() if count > 1) >= 30
        assert all(line.value in known for line in record)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(150, 20_000), seed=st.integers(0, 5), per_token=st.floats(1.5, 6))
def test_record_fills_its_budget(tokens: int, seed: int, per_token: float) -> None:
    def count(text: str) -> int:
        return round(len(text) / per_token)

    record = records.make_record(random.Random(seed), tokens, count)
    longest_line = 60 / per_token
    size = count(records.record_text(record))
    assert size <= tokens or not record
    assert size > tokens - 4 * longest_line or count(records.HEADER) > tokens
    assert len({line.key for line in record}) == len(record)


def test_colliding_keys() -> None:
    record = [records.Line(*line) for line in (("a", "x", 1), ("b", "y", 2), ("a", "z", 3), ("c", "z", 4))]
    assert records.colliding(record) == [True, False, True, True]
