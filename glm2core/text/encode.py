"""Turns the converted conversations of each split into tokenized pairs, and reports which rows were dropped."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glm2core.conversation import SPLITS
from glm2core.data.converted import ConvertedBatch, count_rows, read_converted
from glm2core.errors import UserError
from glm2core.family import template_of
from glm2core.files import resolve_path
from glm2core.labels import IGNORED
from glm2core.params import TokenizeParams
from glm2core.params.model_files import read_config_file
from glm2core.text.dataset import TokenizedInfo, TokenizedWriter
from glm2core.text.pairs import PairBatch, PairBuilder
from glm2core.text.prompt import TemplateName, jinja_template, prompt_text
from glm2core.text.spans import Limits, PlannedBatch
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer

_EXAMPLES = 3
_TRAINING_CHARS = 32_000_000  # the small tokenizer is trained on at most this many characters


@dataclass
class EncodeReport:
    """The number of rows in each split, the dropped rows, and examples; the tokenized files record the truncations."""

    rows: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(split, source, id, reason) of each row that gave no pair."""
    examples: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)
    """(id, input_ids, labels) of the first rows of the training split."""


def tokenizer_for(base: str | None, params: TokenizeParams, converted: Path) -> tuple[SpTokenizer, TemplateName, str]:
    """Choose the tokenizer and the template; also returns the reason for this template.

    Without a base, a small tokenizer is trained on the training split.
    """
    if base is None:
        tokenizer = train_tokenizer(_training_texts(converted / "train.parquet"), params.vocabulary_size)
        found: tuple[TemplateName, str] = ("chatglm2", "no base")
    else:
        folder = resolve_path(base)
        if not folder.is_dir():
            raise UserError(
                f"model.base: {folder} is not a folder. Fix the path, or set model.base to null to start from scratch."
            )
        read_config_file(folder)  # report a different kind of network before trying its tokenizer
        tokenizer = SpTokenizer.load(folder)
        found = template_of(folder)
    template, evidence = found if params.template == "auto" else (params.template, "tokenize.template")
    return tokenizer, template, evidence


def encode_converted(
    converted: Path,
    out: Path,
    tokenizer: SpTokenizer,
    template: TemplateName,
    params: TokenizeParams,
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> EncodeReport:
    """Write `{train,validation,test}.parquet` and `tokenizer/` into the folder `out`.

    Args:
        progress: called with the number of rows done since the last call.

    Raises:
        UserError: no row of the training split gave a pair.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer", template, params.pair_format)
    builder = PairBuilder(tokenizer, template, params.pair_format, params.truncation, params.threads)
    info = TokenizedInfo(tokenizer.sha256, template, template_hash(template), params.pair_format)
    report = EncodeReport()
    for split in SPLITS:
        report.rows[split] = 0
        with TokenizedWriter(out / f"{split}.parquet", info, tokenizer.newline) as writer:
            for batch, pairs in _encoded(builder, converted / f"{split}.parquet", params):
                ids, sources, weights = (c.take(pairs.rows) for c in (batch.ids, batch.sources, batch.weights))
                writer.write(ids, sources, pairs, weights)
                _count(report, split, batch, pairs)
                if split == "train":
                    _keep_examples(report, batch, pairs)
                progress(len(batch))
    if not report.rows["train"]:
        raise UserError(
            f"no row of the training split fits: {len(report.dropped):,} rows were dropped "
            f"({'; '.join(sorted({reason for *_, reason in report.dropped}))}). Raise tokenize.max_source_length."
        )
    return report


def converted_rows(converted: Path) -> int:
    """Number of rows in all splits, for a progress bar."""
    return sum(count_rows(path) for split in SPLITS if (path := converted / f"{split}.parquet").exists())


def render_examples(report: EncodeReport, tokenizer: SpTokenizer) -> str:
    """The first rows of the training split as Markdown, with supervised text between « and »."""
    blocks = ["Tokens between « and » are supervised; the rest is only read.\n"]
    for row_id, input_ids, labels in report.examples:
        title = f"## {row_id} ({len(input_ids)} tokens)"
        blocks.append(f"{title}\n\n```\n{_marked(input_ids, labels, tokenizer)}\n```\n")
    return "\n".join(blocks)


def _marked(input_ids: np.ndarray, labels: np.ndarray, tokenizer: SpTokenizer) -> str:
    supervised = labels != IGNORED
    borders = [0, *(np.flatnonzero(np.diff(supervised)) + 1).tolist(), len(labels)]
    text = ""
    for start, end in itertools.pairwise(borders):
        if supervised[start]:
            text += f"«{tokenizer.decode(labels[start:end], skip_special=False)}»"
        else:
            text += tokenizer.decode(input_ids[start:end], skip_special=False)
    return text


def _encoded(builder: PairBuilder, path: Path, params: TokenizeParams) -> Iterator[tuple[ConvertedBatch, PairBatch]]:
    """Yield batches with their pairs, in order. While one batch is written, SentencePiece encodes the next one."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        waiting: tuple[ConvertedBatch, PlannedBatch, Future[list[np.ndarray]]] | None = None
        for batch in read_converted(path):
            plan = _plan(builder, batch, params)
            following = (batch, plan, ahead.submit(builder.encode, plan))
            if waiting:
                yield waiting[0], builder.assemble(waiting[1], waiting[2].result())
            waiting = following
        if waiting:
            yield waiting[0], builder.assemble(waiting[1], waiting[2].result())


def _plan(builder: PairBuilder, batch: ConvertedBatch, params: TokenizeParams) -> PlannedBatch:
    conversations = [batch.conversation(row) for row in range(len(batch))]
    settings = zip(batch.max_source_length, batch.max_target_length, batch.loss_on, strict=True)
    known: dict[tuple[Any, ...], Limits] = {}
    for setting in set(settings):
        source, target, loss_on = setting
        known[setting] = Limits(
            source or params.max_source_length, target or params.max_target_length, loss_on or params.loss_on
        )
    settings = zip(batch.max_source_length, batch.max_target_length, batch.loss_on, strict=True)
    return builder.plan(conversations, [known[setting] for setting in settings])


def _count(report: EncodeReport, split: str, batch: ConvertedBatch, pairs: PairBatch) -> None:
    report.rows[split] += len(pairs.rows)
    report.dropped += [
        (split, batch.sources[row].as_py(), batch.ids[row].as_py(), reason) for row, reason in pairs.dropped
    ]


def _keep_examples(report: EncodeReport, batch: ConvertedBatch, pairs: PairBatch) -> None:
    for row, start, end in zip(pairs.rows, pairs.ends, pairs.ends[1:], strict=False):
        if len(report.examples) == _EXAMPLES:
            return
        tokens = slice(start, end)
        report.examples.append((batch.ids[row].as_py(), pairs.input_ids[tokens].copy(), pairs.labels[tokens].copy()))


def _training_texts(path: Path) -> Iterator[str]:
    """The prompts and answers that will be encoded, up to a number of characters that keeps memory small."""
    left = _TRAINING_CHARS
    for batch in read_converted(path):
        for row in range(len(batch)):
            messages = batch.conversation(row).messages
            for text in (prompt_text(messages, "chatglm2"), messages[-1]["content"]):
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return


def template_hash(template: TemplateName) -> str:
    """Hash of the template's wording, as stored in the tokenized files."""
    return hashlib.sha256(jinja_template(template).encode()).hexdigest()
