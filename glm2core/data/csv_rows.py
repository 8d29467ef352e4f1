"""Reads CSV files row by row."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from glm2core.conversation import undecodable
from glm2core.data.json_rows import LONGEST_ROW, BrokenFileError, Record, too_long
from glm2core.errors import shown_names

_MOST_COLUMNS = 1 << 16
_SKIPPED_AT_ONCE = 1 << 20


def read_csv(text: TextIO, delimiter: str = ",") -> Iterator[Record]:
    """Yield each row of a CSV file with a header as a dict of strings; a row's number is the line where the row ends.

    White space around the names in the header is stripped.
    """
    lines = _Remembered(text)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    # The reader's limit of 128 KiB per field can be lifted only with this setting for the whole csv module
    csv.field_size_limit(sys.maxsize)
    try:
        header = _header(next(reader), lines.text, delimiter)
    except (StopIteration, csv.Error, _TooLongError) as error:
        raise BrokenFileError(f"line 1: the CSV header can't be read ({error})") from None
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
    if any(name.startswith('"') for name in names):  # there was a space in front of the quote
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
    if len(names) > _MOST_COLUMNS:
        raise BrokenFileError(f"line 1: the CSV header has {len(names):,} columns; at most {_MOST_COLUMNS:,} are read")
    if wrong := undecodable(text):
        raise BrokenFileError(f"line 1: the CSV header holds {wrong}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BrokenFileError(f"line 1: the CSV header contains these names more than once: {shown_names(twice)}")
    return names


class _TooLongError(Exception):
    def __init__(self) -> None:
        super().__init__(f"longer than {LONGEST_ROW:,} characters")


class _Remembered:
    """Yields a text's lines and remembers those since the last `forget`, as the raw text if a row can't be parsed.

    Raises:
        _TooLongError: the row is longer than `LONGEST_ROW`; reading continues with the line after the row.
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
        """Skip to the end of the row, which is the first line end outside quotes."""
        quotes = self._since.getvalue().count('"')
        while line and (quotes % 2 or not line.endswith(("\n", "\r"))):
            line = self._file.readline(_SKIPPED_AT_ONCE)
            quotes += line.count('"')
