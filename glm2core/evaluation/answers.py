"""Greedy answers to held-out rows, yielded batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from glm2core.evaluation.generation import Answerer
from glm2core.journal import Memo, compute_only
from glm2core.labels import IGNORED
from glm2core.text.dataset import TokenizedDataset, TokenRow


@dataclass(frozen=True)
class HeldOutAnswer:
    """The model's answer to one held-out row, with the row's own answer as reference."""

    id: str
    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class _Question:
    id: str
    prompt: np.ndarray
    reference: np.ndarray


def answer_rows(
    answerer: Answerer, dataset: TokenizedDataset, *, rows: int, batch_size: int, memo: Memo = compute_only
) -> Iterator[list[HeldOutAnswer]]:
    """Answer the last question of `rows` rows, which are spread evenly over the data; yield the answers batch by batch.

    Prompts of similar length share a batch, to keep padding small.

    Args:
        memo: stores the answers of each batch, and returns answers that are already stored.
    """
    ids = dataset.ids
    chosen = [_last_answer(ids[index], dataset.row(index)) for index in spread(len(dataset), rows)]
    chosen.sort(key=lambda row: len(row.prompt))
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        records = memo(["answers", *(row.id for row in batch)], partial(_answer_batch, answerer, batch))
        yield [HeldOutAnswer(**record) for record in records]


def _answer_batch(answerer: Answerer, batch: list[_Question]) -> list[dict[str, Any]]:
    decode = answerer.chat_format.tokenizer.decode
    replies = answerer.answer_prompts([row.prompt for row in batch])
    return [
        {"id": row.id, "prompt": decode(row.prompt), "reference": decode(row.reference), "answer": reply.answer}
        for row, reply in zip(batch, replies, strict=True)
    ]


def spread(available: int, wanted: int) -> list[int]:
    """At most `wanted` indices below `available`, evenly spread."""
    count = min(available, wanted)
    return [index * available // count for index in range(count)]


def _last_answer(row_id: str, row: TokenRow) -> _Question:
    """Split a row where its last run of supervised tokens starts."""
    input_ids, labels, _ = row
    supervised = np.flatnonzero(labels != IGNORED)
    breaks = np.flatnonzero(np.diff(supervised) > 1)
    start = supervised[breaks[-1] + 1] if len(breaks) else supervised[0]
    return _Question(row_id, input_ids[:start], input_ids[start : supervised[-1] + 1])
