"""CSV and parquet files, row by row."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException, PolarsError

from glm2core.conversation import undecodable
from glm2core.data.json_rows import LONGEST_ROW, BrokenFileError, Record, too_long
from glm2core.errors import shown_names

_BATCH_ROWS = 1024
_MOST_COLUMNS = 1 << 16
_SKIPPED_AT_ONCE = 1 << 20


def read_csv(text: TextIO, delimiter: str = ",") -> Iterator[Record]:
    """Rows of a CSV file with a header, as dicts of strings, numbered by the line they end on.

    White space around the header's names is left out.
    """
    lines = _Remembered(text)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    # The module's limit of 128 KiB a field is the only way to tell the reader of longer texts
    csv.field_size_limit(sys.maxsize)
    try:
        header = _header(next(reader), lines.text, delimiter)
    except (StopIteration, csv.Error, _TooLongError) as error:
        raise BrokenFileError(f"line 1: no CSV header ({error})") from None
    while True:
        lines.forget()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(reader.line_num, lines.text, f"not valid CSV: {error}")
            continue
        except _TooLongError:
            yield too_long(reader.line_num + 1, lines.text)
            continue
        if len(fields) == len(header):
            yield Record(reader.line_num, dict(zip(header, fields, strict=True)))
        elif fields:
            problem = f"{'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            yield Record(reader.line_num, lines.text, problem)


def _header(names: list[str], text: str, delimiter: str) -> list[str]:
    names = [name.strip() for name in names]
    if any(name.startswith('"') for name in names):  # a space stands in front of the quote
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
    if len(names) > _MOST_COLUMNS:
        raise BrokenFileError(f"line 1: the CSV header has {len(names):,} columns; at most {_MOST_COLUMNS:,} are read")
    if wrong := undecodable(text):
        raise BrokenFileError(f"line 1: the CSV header holds {wrong}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BrokenFileError(f"line 1: the CSV header names {shown_names(twice)} twice")
    return names


def read_parquet(path: Path, columns: Collection[str] | None = None) -> Iterator[Record]:
    """Rows of a parquet file as dicts, numbered from 0, in batches that keep memory bounded by a row group.

    Args:
        columns: what is read, where the file has it; the whole row is read again only when it is asked for. None = all.
    """
    number = 0
    try:
        scanned = _scan(path)
        names = scanned.collect_schema().names()
        chosen = [name for name in names if columns is None or name in columns]
        whole = None if len(chosen) == len(names) else _WholeRows(path)
        for batch in _batches(scanned.select(chosen)):
            for row in _dicts(batch.to_arrow()):
                yield Record(number, row, whole=partial(whole.row, number) if whole else None)
                number += 1
    except (PolarsError, PanicException):
        yield from _by_cells(path, start=number)


def _by_cells(path: Path, start: int) -> Iterator[Record]:
    """Rows from `start` on with all columns, by pyarrow: polars gives up a file for one text that is not UTF-8."""
    try:
        with pq.ParquetFile(path) as file:
            first = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for number, row in enumerate(_dicts(batch), first):
                    if number >= start:
                        yield Record(number, row)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise BrokenFileError(f"damaged parquet file ({error}); fetch it again") from error


class _WholeRows:
    """Rows with all their columns, asked for in rising order: no part of the file is read twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batches: Iterator[pl.DataFrame] = iter(())
        self._batch = pl.DataFrame()
        self._start = 0

    def row(self, number: int) -> dict[str, Any]:
        try:
            return self._row(number)
        except (PolarsError, PanicException):
            found: dict[str, Any] = next(_by_cells(self._path, start=number)).value
            return found

    def _row(self, number: int) -> dict[str, Any]:
        if self._batch.is_empty():
            self._start = number
            self._batches = _batches(_scan(self._path).slice(number))
            self._batch = next(self._batches)
        while number >= self._start + len(self._batch):
            self._start += len(self._batch)
            self._batch = next(self._batches)
        return next(_dicts(self._batch.slice(number - self._start, 1).to_arrow()))


def _scan(path: Path) -> pl.LazyFrame:
    """The file of that name alone: `*` or `key=value` in it mean nothing."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def _batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    return iter(rows.collect_batches(chunk_size=_BATCH_ROWS, lazy=True))


def parquet_columns(path: Path) -> list[str]:
    """The names of a parquet file's columns."""
    names: list[str] = pq.read_schema(path).names
    return names


def _dicts(table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in table.columns]
    return (dict(zip(table.schema.names, values, strict=True)) for values in zip(*columns, strict=True))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python's values; a cell that Python has none for (a far time, broken UTF-8) spoils no other."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(cell) for cell in column]
    return values


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, (pa.StringScalar, pa.LargeStringScalar)):
            return cell.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        return f"a {cell.type} that is not UTF-8"
    except (ValueError, OverflowError):
        return f"a {cell.type} out of range"


class _TooLongError(Exception):
    def __init__(self) -> None:
        super().__init__(f"longer than {LONGEST_ROW:,} characters")


class _Remembered:
    """Lines of a text, remembered since the last `forget`: the raw text of a row that can't be parsed.

    Raises:
        _TooLongError: the row is over the bound; what follows it is the next line.
    """

    def __init__(self, text: TextIO) -> None:
        self._file = text
        self._since = io.StringIO()
        self._chars = 0

    def __iter__(self) -> "_Remembered":
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_ROW + 1 - self._chars)
        if not line:
            raise StopIteration
        self._since.write(line)
        self._chars += len(line)
        if self._chars > LONGEST_ROW:
            self._skip(line)
            raise _TooLongError
        return line

    def forget(self) -> None:
        if self._chars:
            self._since = io.StringIO()
            self._chars = 0

    @property
    def text(self) -> str:
        return self._since.getvalue().rstrip("\r\n")

    def _skip(self, line: str) -> None:
        """Go to the row's end: that of a line with no quote open."""
        quotes = self._since.getvalue().count('"')
        while line and (quotes % 2 or not line.endswith(("\n", "\r"))):
            line = self._file.readline(_SKIPPED_AT_ONCE)
            quotes += line.count('"')
