"""The worst answers in the reports of an evaluation."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from glm2core.evaluation.report import ANSWER_ROWS, PREDICTIONS, RETRIEVAL_PREDICTIONS
from glm2core.evaluation.scores import TUNED

_EACH_SOURCE = 3
_MOST_SOURCES = 10
_EACH_LENGTH = 3
_MOST_MISSES = 24


@dataclass(frozen=True)
class WorstAnswer:
    """A held-out row that the tuned model answered badly; `rouge_l` is in per cent."""

    source: str
    rouge_l: float
    prompt: str
    expected: str
    given: str


@dataclass(frozen=True)
class Miss:
    """A wrong answer to a question about a long text.

    `depth` is 0 at the start of the text; it is None if the answer is in several places.
    """

    task: str
    tokens: int
    depth: float | None
    expected: str
    given: str


def worst_answers(folder: Path) -> list[WorstAnswer]:
    """The tuned model's answers with the lowest ROUGE-L, up to three from each of the first ten sources, worst first.

    Exact answers are left out.

    Args:
        folder: folder with answers.parquet and predictions.jsonl; if either is missing, the result is empty.
    """
    scores_file = folder / ANSWER_ROWS
    if not scores_file.is_file():
        return []
    scores = pl.read_parquet(scores_file, glob=False).filter(pl.col("model") == TUNED, pl.col("exact_match") < 100)
    worst = (
        scores.select("source", "id", "rouge_l").sort("source", "rouge_l", "id").group_by("source", maintain_order=True)
    )
    chosen = {row["id"]: row for _, group in list(worst)[:_MOST_SOURCES] for row in group.head(_EACH_SOURCE).to_dicts()}
    texts = {row["id"]: row for row in _records(folder / PREDICTIONS) if row["model"] == TUNED and row["id"] in chosen}
    return [
        WorstAnswer(row["source"], row["rouge_l"], text["prompt"], text["reference"], text["answer"])
        for row_id, row in chosen.items()
        if (text := texts.get(row_id)) is not None
    ]


def misses(folder: Path) -> list[Miss]:
    """The tuned model's first wrong answers, up to three per task and length and 24 in all, shortest texts first."""
    counts: dict[tuple[str, int], int] = {}
    found: list[Miss] = []
    for row in _records(folder / RETRIEVAL_PREDICTIONS):
        group = (row["task"], row["length"])
        if row["model"] != TUNED or row["correct"] or counts.get(group, 0) >= _EACH_LENGTH:
            continue
        counts[group] = counts.get(group, 0) + 1
        expected = row["expected"]
        named = ", ".join(row.get("references", [])) if expected is None else str(expected)
        found.append(Miss(row["task"], row["prompt_tokens"], row["depth"], named, row["output"]))
    return sorted(found, key=lambda miss: (miss.tokens, miss.task))[:_MOST_MISSES]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
