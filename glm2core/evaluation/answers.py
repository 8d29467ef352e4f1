"""Greedy answers to held-out rows, batch by batch, as they come. `B` rows, `T` tokens of the longest prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from glm2core.evaluation.finished import Part, Record, made_now
from glm2core.evaluation.padding import left_mask, left_padded
from glm2core.labels import IGNORED
from glm2core.text.dataset import Row, TokenizedDataset
from glm2core.text.prompt import STOP_TOKENS, TemplateName
from glm2core.text.tokenizer import PAD, SpTokenizer


@dataclass(frozen=True)
class HeldOutAnswer:
    """What the model says to one held-out row, beside what the row says."""

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
    model: PreTrainedModel,
    tokenizer: SpTokenizer,
    template: TemplateName,
    dataset: TokenizedDataset,
    *,
    rows: int,
    batch_size: int,
    max_new_tokens: int,
    part: Part = made_now,
) -> Iterator[list[HeldOutAnswer]]:
    """Answer the last question of `rows` rows, spread evenly over the data; yields batch by batch.

    Prompts alike in length go together, so that little is padded.

    Args:
        part: where the answers of a batch come from or go to.
    """
    ids = dataset.ids
    chosen = [_last_answer(ids[index], dataset.row(index)) for index in _spread(len(dataset), rows)]
    chosen.sort(key=lambda row: len(row.prompt))
    stop_ids = [tokenizer.special_ids[token] for token in STOP_TOKENS[template]]
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=PAD, eos_token_id=stop_ids)
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        records = part(["answers", *(row.id for row in batch)], partial(_answer_batch, model, tokenizer, batch, config))
        yield [HeldOutAnswer(**record) for record in records]


@torch.inference_mode()
def _answer_batch(
    model: PreTrainedModel, tokenizer: SpTokenizer, batch: list[_Question], config: GenerationConfig
) -> list[Record]:
    prompts = [row.prompt for row in batch]
    inputs = left_padded(prompts, PAD, model.device)  # [B, T]
    made = model.generate(  # type: ignore[operator]  # transformers types it as a module's attribute
        inputs, attention_mask=left_mask(prompts, model.device), generation_config=config
    )
    return [
        {
            "id": row.id,
            "prompt": tokenizer.decode(row.prompt),
            "reference": tokenizer.decode(row.reference),
            "answer": tokenizer.decode(_until_stop(ids, config.eos_token_id)),
        }
        for row, ids in zip(batch, made[:, inputs.shape[1] :].tolist(), strict=True)
    ]


def _spread(available: int, wanted: int) -> list[int]:
    count = min(available, wanted)
    return [index * available // count for index in range(count)]


def _last_answer(row_id: str, row: Row) -> _Question:
    """Split a row where its last run of supervised tokens starts."""
    input_ids, labels, _ = row
    supervised = np.flatnonzero(labels != IGNORED)
    breaks = np.flatnonzero(np.diff(supervised) > 1)
    start = supervised[breaks[-1] + 1] if len(breaks) else supervised[0]
    return _Question(row_id, input_ids[:start], input_ids[start : supervised[-1] + 1])


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    # pad = unk = 0 is a token like any other in front of the stop: cut by place, not by value.
    return ids[: next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))]
