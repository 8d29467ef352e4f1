"""Defines the parquet files of tokenized rows: their schema, their only writer, and the arrays that training reads.

In shapes, `B` is the number of rows, and `T` the number of tokens in a row. Rows are unpadded.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.parquet import damage_told, open_parquet, parquet_writer
from glm2core.text.pairs import PairBatch

_INT_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("input_ids", _INT_LIST, nullable=False),
        pa.field("labels", _INT_LIST, nullable=False),
        pa.field("segments", _INT_LIST, nullable=False),
    ]
)
_FACTS = (
    pa.field("prompt_tokens", pa.int32(), nullable=False),
    pa.field("response_tokens", pa.int32(), nullable=False),
    pa.field("supervised_tokens", pa.int32(), nullable=False),
    pa.field("cuts", pa.list_(pa.string()), nullable=False),  # the kind of each truncation in the row
)
"""Further columns of a row. The reports are made from them, and training does not read them."""

_WEIGHT = pa.field("weight", pa.float32())  # how often an epoch takes the row; null = once

TokenRow = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TokenizedInfo:
    """How a tokenized file was made. The parquet file stores this as key-value metadata."""

    tokenizer_sha256: str
    template: str
    template_sha256: str
    pair_format: str


class TokenizedWriter:
    """Writes batches of pairs; each batch becomes a row group."""

    def __init__(self, path: Path, info: TokenizedInfo, newline: int) -> None:
        self._schema = pa.schema([*SCHEMA, *_FACTS, _WEIGHT], vars(info))
        self._newline = newline
        self._closing = ExitStack()
        self._file = self._closing.enter_context(
            parquet_writer(path, self._schema, dictionary_columns=["id", "source", "cuts.list.element"])
        )

    def write(self, ids: pa.Array, sources: pa.Array, pairs: PairBatch, weights: pa.Array | None = None) -> None:
        """Write a batch.

        Args:
            ids: the id of each pair's row. [B]
            sources: the source of each row. [B]
            weights: how often an epoch takes each row; None = once. [B]
        """
        if not len(pairs.rows):
            return
        segments, segment_ends = pairs.segments(self._newline)
        columns = [
            ids,
            sources,
            _lists(pairs.input_ids, pairs.ends),
            _lists(pairs.labels, pairs.ends),
            _lists(segments, segment_ends),
            pa.array(pairs.source_lengths, pa.int32()),
            pa.array(np.diff(pairs.ends) - pairs.source_lengths, pa.int32()),
            pa.array(pairs.supervised_tokens, pa.int32()),
            pa.array([list(cuts.elements()) for cuts in pairs.row_cuts], pa.list_(pa.string())),
            pa.nulls(len(ids), _WEIGHT.type) if weights is None else weights,
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def __enter__(self) -> "TokenizedWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()


class TokenizedDataset:
    """A tokenized file as flat arrays, in which each row is a slice.

    Args:
        ids: the id of each row. [B]
        sources: the source of each row. [B]
        flat: the int32 arrays input_ids, labels and segments, each with the values of all rows.
        offsets: for each of these arrays, where each row begins and the last row ends, int64. [B + 1]
        weights: how often an epoch takes each row; None = once. [B]
    """

    def __init__(
        self,
        ids: pa.ChunkedArray,
        sources: pa.ChunkedArray,
        flat: dict[str, np.ndarray],
        offsets: dict[str, np.ndarray],
        info: TokenizedInfo,
        weights: np.ndarray | None = None,
    ) -> None:
        self._ids, self._sources, self._flat, self._offsets = ids, sources, flat, offsets
        self.weights = np.ones(len(ids)) if weights is None else weights
        self.info = info

    @classmethod
    def load(cls, path: Path, tokenizer_hash: str | None = None) -> "TokenizedDataset":
        """Read a whole file.

        Args:
            tokenizer_hash: SHA-256 of the tokenizer.model with which the file must have been made; None = any.

        Raises:
            UserError: the file is missing or damaged, was not written by the tokenize stage, or was made with a
                different tokenizer.
        """
        if not path.exists():
            raise UserError(f"{path} is missing. Run the tokenize stage first: dvc repro tokenize.")
        with open_parquet(path, "tokenize") as file, damage_told(path, "tokenize"):
            info = read_info(file, path)
            if tokenizer_hash is not None and tokenizer_hash != info.tokenizer_sha256:
                raise UserError(
                    f"{path} was made with a different tokenizer (sha256 {info.tokenizer_sha256[:12]}) from the "
                    f"model's ({tokenizer_hash[:12]}), so its ids would stand for different words. "
                    "Run dvc repro tokenize."
                )
            flat, offsets = {}, {}
            for name in ("input_ids", "labels", "segments"):
                flat[name], offsets[name] = _flatten(file.read([name]).column(name))
            named = file.read(["id", "source"])
            _require_all(file, len(named), offsets)
            weights = np.ones(len(named))
            if _WEIGHT.name in file.schema_arrow.names:
                weights = file.read([_WEIGHT.name]).column(0).fill_null(1).to_numpy().astype(np.float64)
            return cls(named.column("id"), named.column("source"), flat, offsets, info, weights)

    @classmethod
    def of_pairs(
        cls, ids: Sequence[str], source: str, pairs: PairBatch, info: TokenizedInfo, newline: int
    ) -> "TokenizedDataset":
        """Make a dataset from pairs in memory, which all come from the same source.

        Args:
            ids: the id of each pair's row. [B]
            newline: the token of a line end.
        """
        segments, segment_ends = pairs.segments(newline)
        flat = {"input_ids": pairs.input_ids, "labels": pairs.labels, "segments": segments}
        offsets = {"input_ids": pairs.ends, "labels": pairs.ends, "segments": segment_ends.astype(np.int64)}
        sources = pa.array([source] * len(ids), pa.string())
        return cls(pa.chunked_array([pa.array(ids, pa.string())]), pa.chunked_array([sources]), flat, offsets, info)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """The id of each row, as in the converted files. [B]"""
        found: list[str] = self._ids.to_pylist()
        return found

    @property
    def sources(self) -> list[str]:
        """The source of each row, as in the converted files. [B]"""
        found: list[str] = self._sources.to_pylist()
        return found

    @property
    def source_numbers(self) -> tuple[list[str], np.ndarray]:
        """The sources' names in alphabetical order, and for each row its source's index in that order. [B]"""
        whole = self._sources if isinstance(self._sources, pa.Array) else self._sources.combine_chunks()
        encoded = whole.dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        order = sorted(range(len(names)), key=names.__getitem__)
        places = np.argsort(order)[encoded.indices.to_numpy()] if names else np.zeros(0, np.int64)
        return [names[number] for number in order], places

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each row, int64. [B]"""
        return np.diff(self._offsets["input_ids"])

    @property
    def supervised_tokens(self) -> int:
        """Number of labels in all rows together that are not ignored."""
        return int(np.count_nonzero(self._flat["labels"] != IGNORED))

    def row(self, index: int) -> TokenRow:
        """Views of one row's input_ids [T], labels [T] and segments (token indices at which rounds and lines start)."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return (self._view("input_ids", index), self._view("labels", index), self._view("segments", index))

    def take(self, rows: Sequence[int]) -> "TokenizedDataset":
        """A dataset with only the given rows, in the given order."""
        flat, offsets = {}, {}
        for name, values in self._flat.items():
            flat[name] = np.concatenate([values[:0], *(self._view(name, row) for row in rows)])
            lengths = np.diff(self._offsets[name])[list(rows)]
            offsets[name] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = pa.array(rows, pa.int64())
        ids, sources = self._ids.take(places), self._sources.take(places)
        return TokenizedDataset(ids, sources, flat, offsets, self.info, self.weights[list(rows)])

    def _view(self, name: str, index: int) -> np.ndarray:
        start, end = self._offsets[name][index : index + 2]
        return self._flat[name][start:end]


def _lists(values: np.ndarray, ends: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values, pa.int32()), type=_INT_LIST)


def _flatten(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    lengths = [np.diff(np.asarray(chunk.offsets)) for chunk in column.chunks]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))])
    return np.concatenate([np.zeros(0, np.int32), *values]), offsets.astype(np.int64)


def _require_all(file: pq.ParquetFile, rows: int, offsets: dict[str, np.ndarray]) -> None:
    """Check the lists' number and lengths against the footer, because no checksum covers a page header's counts."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    leaves = [group.column(number) for group in groups for number in range(group.num_columns)]
    for name, ends in offsets.items():
        counted = sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.startswith(f"{name}."))
        empty = int((np.diff(ends) == 0).sum())  # an empty list has a place in the file, but no value
        if len(ends) != rows + 1 or ends[-1] + empty != counted:
            raise pa.ArrowInvalid(f"{name} lacks values")


def read_info(file: pq.ParquetFile, path: Path) -> TokenizedInfo:
    """How a tokenized file was made, from its metadata.

    Raises:
        UserError: the file is not a tokenized file, or was written by a different version.
    """
    metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
    known = {name: metadata[name] for name in TokenizedInfo.__dataclass_fields__ if name in metadata}
    if file.schema_arrow.names[: len(SCHEMA)] != SCHEMA.names or len(known) < len(TokenizedInfo.__dataclass_fields__):
        raise UserError(f"{path} was not written by this version's tokenize stage. Run dvc repro tokenize.")
    return TokenizedInfo(**known)
