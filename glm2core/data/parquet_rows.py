"""Reads users' parquet files row by row with pyarrow, because polars ends the whole process on some damaged files.

A small file can unpack to huge data. For example, every row can use a long text that is stored once in a dictionary,
and a few bytes can encode a page of zeros or a list of 10^9 nulls. Three rules limit the memory: texts stay in their
dictionary until their row is built, columns with an extreme compression ratio are rejected, and rows are built in
batches of 64 MiB.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glm2core.data.json_rows import LONGEST_ROW, BrokenFileError, Record
from glm2core.errors import printable, shown_names

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 1 << 26  # also the limit for one row: LONGEST_ROW characters of 4 bytes each
_BYTES_OF_A_CELL = 64  # the size of a Python object without its text
_READ_AHEAD = 1 << 20
_UNPACKED = 1 << 28  # bytes that one column may always take in one row group
_ELEMENTS = 1 << 24  # list elements that one column may always contain in one row group
_RATIO = 200  # largest allowed ratio to the packed bytes; no real column of texts reaches it


def parquet_columns(path: Path) -> list[str]:
    """The names of a parquet file's columns.

    Raises:
        BrokenFileError: the file is damaged, or two of its columns have the same name.
    """
    with _open(path) as file:
        return _names(file)


def count_parquet_rows(path: Path) -> int:
    """Number of rows in a parquet file, as recorded in its footer.

    Raises:
        BrokenFileError: the file is damaged.
    """
    with _open(path) as file:
        return int(file.metadata.num_rows)


def read_parquet(path: Path, columns: Collection[str] | None = None) -> Iterator[Record]:
    """Yield the rows of a parquet file as dicts, numbered from 0.

    Args:
        columns: the names of the columns to read; names that the file does not contain are ignored. Whole rows are then
            read only on request. None = all columns.

    Raises:
        BrokenFileError: one of the columns to read is damaged or has an extreme compression ratio.
    """
    with _open(path) as file:
        names = _names(file)
        chosen = [name for name in names if columns is None or name in columns]
        whole = None if len(chosen) == len(names) else _WholeRows(path)
        rows = (row for group in range(file.num_row_groups) for row in _read(path, file, chosen, group))
        for number, row in enumerate(rows):
            if row is None:
                yield Record(number, "", f"the row is longer than {LONGEST_ROW:,} characters")
            else:
                yield Record(number, row, whole=partial(whole.row, number, row) if whole else None)


class _WholeRows:
    """Reads rows with all their columns; they must be requested in rising order, so that nothing is read twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: Iterator[dict[str, Any] | None] = iter(())
        self._next, self._end = 0, 0  # row numbers in the current row group

    def row(self, number: int, known: dict[str, Any]) -> dict[str, Any]:
        """Row `number` with all columns; if these can't be read, only the `known` columns, so that no row is lost."""
        try:
            if number >= self._end:
                self._open_group(number)
            row = None
            while self._next <= number:
                row = next(self._rows)
                self._next += 1
        except (BrokenFileError, StopIteration):
            return known
        return known if row is None else row

    def _open_group(self, number: int) -> None:
        with _open(self._path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes))
        group = bisect_right(ends, number)
        self._rows = _group_rows(self._path, group)
        self._next, self._end = ends[group] - sizes[group], ends[group]


def _group_rows(path: Path, group: int) -> Iterator[dict[str, Any] | None]:
    with _open(path) as file:
        yield from _read(path, file, _names(file), group)


@contextmanager
def _open(path: Path, *, keep_dictionaries: bool = True) -> Iterator[pq.ParquetFile]:
    """Open a file so that texts stay in their dictionaries and pages are read one at a time."""
    try:
        metadata = pq.read_metadata(path)
        leaves = map(metadata.schema.column, range(metadata.num_columns))
        texts = [leaf.path for leaf in leaves if _is_text(leaf) and (keep_dictionaries or "." not in leaf.path)]
        options: dict[str, Any] = {"buffer_size": _READ_AHEAD, "page_checksum_verification": True}
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts, **options) as file:
            yield file
    except BrokenFileError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:  # the error is not caused by the file's content
            raise
        raise BrokenFileError(f"damaged parquet file ({printable(str(error))[:300]}); fetch it again") from error


def _is_text(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type in ("STRING", "JSON", "NONE")


def _names(file: pq.ParquetFile) -> list[str]:
    names: list[str] = file.schema_arrow.names
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BrokenFileError(f"the parquet file contains these columns more than once: {shown_names(twice)}")
    return names


def _read(path: Path, file: pq.ParquetFile, names: list[str], group: int) -> Iterator[dict[str, Any] | None]:
    """Yield the rows in a row group; None for a row that exceeds the size limit."""
    if not names:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    at_once = int(min(max(_BYTES_AT_ONCE / _bytes_of_a_row(file, names, group), 1), _ROWS_AT_ONCE))
    done = 0
    try:
        for batch in file.iter_batches(at_once, row_groups=[group], columns=names):
            for row in _rows(batch):
                yield row
                done += 1
    except pa.ArrowNotImplementedError:  # a dictionary inside a list ends in the middle of a batch
        with _open(path, keep_dictionaries=False) as plain:
            batches = plain.iter_batches(at_once, row_groups=[group], columns=names)
            yield from islice((row for batch in batches for row in _rows(batch)), done, None)


def _bytes_of_a_row(file: pq.ParquetFile, names: list[str], number: int) -> float:
    """A row group's average size per decoded row, in bytes.

    Raises:
        BrokenFileError: a column has an extreme compression ratio.
    """
    chosen, group = {*names}, file.metadata.row_group(number)
    total = 1
    for column in map(group.column, range(group.num_columns)):
        name = column.path_in_schema
        if name not in chosen and name.split(".")[0] not in chosen:
            continue
        packed = _RATIO * max(column.total_compressed_size, 0)
        unpacked, elements = column.total_uncompressed_size, column.num_values - group.num_rows
        if unpacked > max(_UNPACKED, packed) or elements > max(_ELEMENTS, packed):
            raise BrokenFileError(
                f"column {shown_names([name])} would unpack {column.total_compressed_size:,} bytes to {unpacked:,} "
                f"bytes in {column.num_values:,} values, which is not plausible for texts; the column is not read"
            )
        total += unpacked + 8 * column.num_values
    return total / max(group.num_rows, 1)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Yield a batch's rows, building as many at once as the size limit allows; None for a row that alone exceeds it."""
    if sum(map(_size, batch.columns)) <= _BYTES_AT_ONCE:
        columns = [_values(column) for column in batch.columns]
        yield from (dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True))
    elif len(batch) == 1:
        yield None
    else:
        half = len(batch) // 2
        yield from _rows(batch.slice(0, half))
        yield from _rows(batch.slice(half))


def _size(values: pa.Array) -> int:
    """Size in bytes of a column's Python values; a text that occurs in several cells counts once for each cell."""
    kind = values.type
    objects = _BYTES_OF_A_CELL * len(values)
    if isinstance(values, pa.ExtensionArray):
        return _size(values.storage)
    if isinstance(values, pa.DictionaryArray):
        held = kind.value_type
        if not (pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_binary(held)):
            return objects
        lengths = pc.take(pc.binary_length(values.dictionary), values.indices)
        return objects + int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_map(kind):
        values, kind = values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))), None
        return objects + _size(values.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return objects + _size(values.flatten())
    if pa.types.is_struct(kind):
        return objects + sum(map(_size, values.flatten()))
    return objects + int(values.nbytes)


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values; a cell without a Python value, such as a far date, does not affect the other cells."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(cell) for cell in column]
    return values


def _value(cell: pa.Scalar) -> Any:
    text = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(text, (pa.StringScalar, pa.LargeStringScalar)):
            return text.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        return f"a {cell.type} that is not UTF-8"
    except (ValueError, OverflowError):
        return f"a {cell.type} out of range"
