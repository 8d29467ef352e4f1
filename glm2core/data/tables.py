"""CSV and parquet files, row by row."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

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


def read_parquet(path: Path) -> Iterator[Record]:
    """Rows of a parquet file as dicts, numbered from 0."""
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield Record(number, row)
                    number += 1
    except pa.ArrowException as error:
        raise BrokenFileError(f"damaged parquet file ({error}); fetch it again") from error


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
