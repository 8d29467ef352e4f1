"""CSV and parquet files, row by row."""

import csv
import sys
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import polars as pl
from polars.exceptions import PanicException, PolarsError

from glm2core.data.json_rows import BrokenFileError, Record

_BATCH_ROWS = 1024


def read_csv(text: TextIO) -> Iterator[Record]:
    """Rows of a CSV file with a header, as dicts of strings, numbered by the line they end on."""
    lines = _Remembered(text)
    reader = csv.reader(lines, strict=True)
    # The module's limit of 128 KiB a field is the only way to tell the reader of longer texts
    csv.field_size_limit(sys.maxsize)
    try:
        header = next(reader)
    except (StopIteration, csv.Error) as error:
        raise BrokenFileError(f"line 1: no CSV header ({error})") from None
    if twice := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
        raise BrokenFileError(f"line 1: the CSV header names {', '.join(map(repr, twice))} twice")
    while True:
        lines.forget()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(reader.line_num, lines.text, f"not valid CSV: {error}")
            continue
        if len(fields) == len(header):
            yield Record(reader.line_num, dict(zip(header, fields, strict=True)))
        elif fields:
            problem = f"{'more' if len(fields) > len(header) else 'fewer'} fields than the header"
            yield Record(reader.line_num, lines.text, problem)


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
        whole = None if len(chosen) == len(names) else _WholeRows(scanned)
        for batch in _batches(scanned.select(chosen)):
            for row in batch.to_arrow().to_pylist():
                yield Record(number, row, whole=partial(whole.row, number) if whole else None)
                number += 1
    except (PolarsError, PanicException) as error:
        raise BrokenFileError(f"damaged parquet file ({error}); fetch it again") from error


class _WholeRows:
    """Rows with all their columns, asked for in rising order: no part of the file is read twice."""

    def __init__(self, scanned: pl.LazyFrame) -> None:
        self._scanned = scanned
        self._batches: Iterator[pl.DataFrame] = iter(())
        self._batch = pl.DataFrame()
        self._start = 0

    def row(self, number: int) -> dict[str, Any]:
        if self._batch.is_empty():
            self._start = number
            self._batches = _batches(self._scanned.slice(number))
            self._batch = next(self._batches)
        while number >= self._start + len(self._batch):
            self._start += len(self._batch)
            self._batch = next(self._batches)
        found: dict[str, Any] = self._batch.slice(number - self._start, 1).to_arrow().to_pylist()[0]
        return found


def _scan(path: Path) -> pl.LazyFrame:
    """The file of that name alone: `*` or `key=value` in it mean nothing."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def _batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    return iter(rows.collect_batches(chunk_size=_BATCH_ROWS, lazy=True))


class _Remembered:
    """Lines of a text, remembered since the last `forget`: the raw text of a row that can't be parsed."""

    def __init__(self, text: TextIO) -> None:
        self._lines = iter(text)
        self._since: list[str] = []

    def __iter__(self) -> "_Remembered":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._since.append(line)
        return line

    def forget(self) -> None:
        self._since.clear()

    @property
    def text(self) -> str:
        return "".join(self._since).rstrip("\r\n")
