"""Prepares tokenized rows for display, line by line, and marks which tokens are supervised and which were cut off.

A line starts at the row's start, and wherever position stretching may open a gap, which is after line ends.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from glm2core.conversation import SPLITS, Conversation
from glm2core.errors import printable
from glm2core.labels import IGNORED
from glm2core.parquet import rows_at
from glm2core.text.pairs import PairBuilder
from glm2core.text.spans import Limits, LossOn
from glm2core.text.stretch import stretched_positions
from glm2core.text.tokenizer import SpTokenizer

MOST_TOKENS = 2000
STRETCHED = 32_768
"""The number of positions over which a shown row is spread as an example. In training, the params set this number."""

_ROWS_OF_EACH = 2
_MOST_COMPARED = 4_000_000  # pairs of tokens; a larger difference is shown as one piece
_NO_LIMIT = 1 << 40
_COLUMNS = ("id", "source", "input_ids", "labels", "segments", "cuts")


@dataclass(frozen=True)
class ShownToken:
    """One token.

    text: the token's text, in which characters that move a cursor or change the text direction are escaped.
    label: `=` if the label is the token itself, the label's text if it is a different token, empty if it is ignored.
    cut: whether the token was cut off, so that it is not part of the row.
    """

    text: str
    id: int
    label: str = ""
    cut: bool = False


@dataclass(frozen=True)
class ShownLine:
    """Tokens up to the next place where a gap may open, with the first token's position and stretched position."""

    position: int
    stretched: int
    tokens: list[ShownToken]


@dataclass(frozen=True)
class ShownRow:
    """A row for display.

    number: the row's number in its file, from 0.
    cuts: the kind of each truncation in the row.
    left_out: number of tokens beyond `MOST_TOKENS`, which are not shown.
    text: the first `MOST_TOKENS` tokens, decoded.
    """

    place: str
    number: int
    id: str
    source: str
    cuts: list[str]
    length: int
    supervised: int
    lines: list[ShownLine]
    left_out: int
    text: str


def shown_row(
    place: str, number: int, row: dict[str, Any], tokenizer: SpTokenizer, whole: np.ndarray | None = None
) -> ShownRow:
    """Prepare a row for display.

    Args:
        place: the file's name.
        row: the row's values in the tokenized file's `_COLUMNS`.
        whole: the row's ids before it was shortened; None = it was not shortened, or these ids are unknown.
    """
    ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
    stretched = stretched_positions(len(ids), row["segments"], STRETCHED, np.random.default_rng([0, 0, number]))
    starts = {*row["segments"], 0}
    lines: list[ShownLine] = []
    shown = left_out = 0
    for position, cut in _with_cut_tokens(ids, whole):
        new_line = position is not None and position in starts and cut is None
        if shown >= MOST_TOKENS:
            left_out += 1
            continue
        shown += 1
        if new_line or not lines:
            at = position or 0
            lines.append(ShownLine(at, int(stretched[at]), []))
        token = cut if cut is not None else int(ids[cast(int, position)])
        label = "" if cut is not None else _label(token, int(labels[cast(int, position)]), tokenizer)
        lines[-1].tokens.append(ShownToken(visible(tokenizer.piece(token)), token, label, cut is not None))
    return ShownRow(
        place=place,
        number=number,
        id=row["id"],
        source=printable(row["source"]),
        cuts=[cut.replace("_", " ") for cut in row.get("cuts") or []],
        length=len(ids),
        supervised=int((labels != IGNORED).sum()),
        lines=lines,
        left_out=left_out,
        text=tokenizer.decode(ids[:MOST_TOKENS], skip_special=False),
    )


def visible(text: str) -> str:
    """A token's text on one line; characters that move a cursor or change the text direction are escaped."""
    return printable(text.replace("<0x0A>", "⏎"))


def example_rows(converted: Path, tokenized: Path, tokenizer: SpTokenizer, builder: PairBuilder) -> Iterator[ShownRow]:
    """From each split, choose a few rows of each source, then a few with each kind of truncation, and no row twice."""
    for split in SPLITS:
        file = tokenized / f"{split}.parquet"
        scanned = pl.scan_parquet(file, glob=False).select("source", "cuts").with_row_index("number")
        first = pl.col("number").head(_ROWS_OF_EACH)
        of_sources = scanned.group_by("source", maintain_order=True).agg(first).select("number").explode("number")
        of_cuts = scanned.explode("cuts").drop_nulls("cuts").group_by("cuts", maintain_order=True).agg(first)
        numbers = pl.concat([of_sources, of_cuts.select("number").explode("number")]).collect()["number"]
        places = list(dict.fromkeys(numbers.drop_nulls().to_list()))
        rows = rows_at(file, "tokenize", places, _COLUMNS)
        wholes = whole_rows(converted / file.name, rows, builder)
        for number, row in zip(places, rows, strict=True):
            yield shown_row(split, number, row, tokenizer, wholes.get(row["id"]))


def whole_rows(converted: Path, rows: Sequence[dict[str, Any]], builder: PairBuilder) -> dict[str, np.ndarray]:
    """Map the id of each shortened row to its token ids before shortening; rows that `converted` lacks are left out."""
    cut = {row["id"]: row for row in rows if row.get("cuts")}
    if not cut or not converted.is_file():
        return {}
    found = pl.scan_parquet(converted, glob=False).select("id").with_row_index("number")
    places = found.filter(pl.col("id").is_in(list(cut))).collect()["number"].to_list()
    wholes = {}
    for row in rows_at(converted, "convert", places, ("id", "messages", "question_chars", "loss_on")):
        loss_on = row["loss_on"] or _loss_on(cut[row["id"]]["labels"])
        limits = Limits(_NO_LIMIT, _NO_LIMIT, loss_on)
        pairs = builder.build([Conversation(row["messages"], row["question_chars"])], [limits])
        wholes[row["id"]] = pairs.input_ids
    return wholes


def _loss_on(labels: Sequence[int]) -> LossOn:
    """Infer from a row's labels the `loss_on` with which they were made, for a row whose source does not set it."""
    supervised = np.array(labels) != IGNORED
    return "every" if np.count_nonzero(np.diff(supervised.astype(np.int8)) == 1) > 1 else "last"


def _label(token: int, label: int, tokenizer: SpTokenizer) -> str:
    """`=` if the label is the token itself, empty if the label is ignored; otherwise the label's text.

    Label and token differ, for example, at the end of an answer before the last one.
    """
    if label == IGNORED:
        return ""
    return "=" if label == token else visible(tokenizer.piece(label))


def _with_cut_tokens(ids: np.ndarray, whole: np.ndarray | None) -> Iterable[tuple[int | None, int | None]]:
    """(position, None) for each token of the row, and (None, id) for each cut-off token, where it stood."""
    if whole is None:
        return ((position, None) for position in range(len(ids)))
    return _merged(ids.tolist(), whole.tolist())


def _merged(ids: list[int], whole: list[int]) -> Iterator[tuple[int | None, int | None]]:
    shorter = min(len(ids), len(whole))
    head = next((n for n in range(shorter) if ids[n] != whole[n]), shorter)
    tail = next((n for n in range(shorter - head) if ids[-1 - n] != whole[-1 - n]), shorter - head)
    ours, theirs = ids[head : len(ids) - tail], whole[head : len(whole) - tail]
    yield from ((position, None) for position in range(head))
    if len(ours) * len(theirs) <= _MOST_COMPARED:
        blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    else:
        blocks = [("replace", 0, len(ours), 0, len(theirs))]
    for kind, start, end, their_start, their_end in blocks:
        if kind != "equal":
            yield from ((None, token) for token in theirs[their_start:their_end])
        yield from ((head + position, None) for position in range(start, end))
    yield from ((position, None) for position in range(len(ids) - tail, len(ids)))
