"""Answers and scores of the base and the tuned model, on the same held-out rows and rows of `evaluate.general`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import polars as pl
from transformers import PreTrainedModel

from glm2core.console import progress_bar
from glm2core.evaluation.answers import HeldOutAnswer, answer_rows, spread
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.evaluation.loss import token_losses
from glm2core.evaluation.report import append_records
from glm2core.evaluation.rows import described
from glm2core.evaluation.scores import BASE, TUNED
from glm2core.evaluation.text_metrics import row_scores
from glm2core.journal import Memo
from glm2core.params import EvaluateParams, TokenizeParams
from glm2core.text.chat_format import ChatFormat
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.file_rows import encode_file

GENERAL = "general: "
"""The source of rows from a file of `evaluate.general` is this prefix and the file's name."""

RowLosses = Mapping[str, tuple[float, int]]
"""Each row's id, with the row's summed loss and number of supervised tokens."""


@dataclass(frozen=True)
class AskedRows:
    """The rows to answer.

    Attributes:
        held_out: rows spread evenly over the test split.
        general: rows of `evaluate.general`; None if it is not set.
        facts: a table with one line for each of these rows and the columns id, source, kind, language and general.
    """

    held_out: TokenizedDataset
    general: TokenizedDataset | None
    facts: pl.DataFrame

    @classmethod
    def choose(cls, test: TokenizedDataset, facts: pl.DataFrame, rows: int) -> "AskedRows":
        """Choose at most `rows` rows of the test split.

        Args:
            facts: the result of `read_rows` for all rows of the test split.
        """
        held_out = test.take(spread(len(test), rows))
        known = pl.DataFrame({"id": held_out.ids}, {"id": pl.String}).join(facts, on="id", maintain_order="left")
        return cls(held_out, None, known.with_columns(general=pl.lit(False)))

    def with_general(self, path: Path, rows: int, chat_format: ChatFormat, tokenize: TokenizeParams) -> "AskedRows":
        """Add the first `rows` rows of a file, except rows whose id is also the id of a held-out row."""
        found = encode_file(path, rows, chat_format, tokenize, "evaluate.general")
        known = described(found.conversations, found.dataset.ids, f"{GENERAL}{path.name}")
        taken = set(self.held_out.ids)
        kept = [place for place, row_id in enumerate(found.dataset.ids) if row_id not in taken]
        facts = pl.concat([self.facts, known[kept].with_columns(general=pl.lit(True))])
        return AskedRows(self.held_out, found.dataset.take(kept), facts)

    @property
    def parts(self) -> Iterator[TokenizedDataset]:
        return (part for part in (self.held_out, self.general) if part is not None and len(part))

    def __len__(self) -> int:
        return len(self.facts)


def answer_and_score(
    model: PreTrainedModel,
    chat_format: ChatFormat,
    asked: AskedRows,
    params: EvaluateParams,
    *,
    name: str,
    memo: Memo,
    known: RowLosses | None = None,
    file: TextIO | None = None,
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Answer all rows greedily, and compute their scores and loss.

    Args:
        name: name of the model in the returned table.
        memo: stores the answers and losses of each batch, and returns those that are already stored; different models
            must use different keys.
        known: losses that are already computed.
        file: receives each batch of answers as soon as the batch is complete.

    Returns:
        A table with one line per row (model, id, scores, loss, tokens), and the answers as records.
    """
    settings = params.generation
    answerer = Answerer(model, chat_format, Sampling(settings.max_new_tokens))
    sources = dict(asked.facts.select("id", "source").iter_rows())
    answers: list[HeldOutAnswer] = []
    records: list[dict[str, Any]] = []
    losses = dict(known or {})
    bar_name = "answers" if name == TUNED else f"answers, {name}"
    with progress_bar(bar_name, len(asked)) as (bar, task):
        for part in asked.parts:
            batches = answer_rows(answerer, part, rows=len(part), batch_size=settings.batch_size, memo=memo)
            for batch in batches:
                made = [{"model": name, "source": sources[answer.id], **asdict(answer)} for answer in batch]
                if file is not None:
                    append_records(file, made)
                records += made
                answers += batch
                bar.advance(task, len(batch))
            if any(row_id not in losses for row_id in part.ids):
                found = token_losses(model, part, params.batch_tokens, memo=memo)
                losses |= row_losses(part, found)
    lines = [
        {
            "model": name,
            "id": answer.id,
            **row_scores(answer.answer, answer.reference),
            "loss": losses[answer.id][0],
            "tokens": losses[answer.id][1],
        }
        for answer in answers
    ]
    return pl.DataFrame(lines, infer_schema_length=None), records


def row_losses(dataset: TokenizedDataset, found: list[Any]) -> dict[str, tuple[float, int]]:
    """Map each row's id to the row's summed loss and number of tokens, from the losses of all tokens."""
    return {row_id: (float(row.sum()), len(row)) for row_id, row in zip(dataset.ids, found, strict=True)}


def memo_of_base(memo: Memo) -> Memo:
    """The same memo, with separate keys for the base's values."""
    return partial(_named, memo)


def _named(memo: Memo, key: Any, compute: Any) -> Any:
    return memo([BASE, key], compute)
