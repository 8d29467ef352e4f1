"""Streaming JSON: the elements of an array or the lines of a file, one at a time, with their places.

`json.load` needs the whole file in memory and stops at the first fault; here a faulty element is
handed out as a problem and reading goes on behind it.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

_CHUNK = 1 << 20
_LONGEST_ROW = 1 << 28  # characters; beyond it a missing bracket is likelier than a row
_SPACES = " \t\n\r"
_SPACE = re.compile(f"[{_SPACES}]*")
# Possessive: a string that does not end yet fails at once, without going back through megabytes
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


class Record(NamedTuple):
    """One raw row: its parsed value, or, when `problem` says why it can't be parsed, its text.

    whole: gives the row with all its columns, where `value` has some of them only.
    """

    number: int
    value: Any
    problem: str | None = None
    whole: Callable[[], Any] | None = None


class BrokenFileError(ValueError):
    """The file can't be read on from here; the message names the place."""


class _DuplicateKeyError(ValueError):
    pass


def read_lines(text: TextIO) -> Iterator[Record]:
    """A JSON value a line, numbered from 1; empty lines are skipped."""
    decoder = _decoder()
    for number, line in enumerate(text, 1):
        line = line.strip()
        if line:
            yield _parse(decoder, line, number)


def read_array(text: TextIO) -> Iterator[Record]:
    """The elements of one JSON array, numbered from 0.

    Raises:
        BrokenFileError: the array does not end, or something follows it.
    """
    window = _Window(text)
    window.peek()  # the bracket that told the kind
    window.advance()
    index = 0
    while window.peek() != "]":
        yield window.element(index)
        index += 1
        mark = window.peek()
        if mark == ",":
            window.advance()
        elif mark != "]":
            found = f"{mark!r} stands" if mark else "the file ends"
            raise BrokenFileError(f"{window.place(index)}: {found} where ',' or ']' is due")
    window.advance()
    if extra := window.peek():
        raise BrokenFileError(f"{window.place(index)}: {extra!r} follows the end of the array; a file is one array")


class _Window:
    """The part of the text that is in memory: at most one element and a chunk."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._decoder = _decoder()
        self._buffer = ""
        self._position = 0
        self._lines_before = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            mark = self._buffer[self._position : self._position + 1]
            if mark and mark not in _SPACES:
                return mark
            match = _SPACE.match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if self._ended:
                return ""
            self._fill()

    def advance(self) -> None:
        """Step over the character that `peek` gave."""
        self._position += 1

    def element(self, index: int) -> Record:
        """Read the element that begins where `peek` stopped."""
        while True:
            start = self._position
            try:
                value, end = self._decoder.raw_decode(self._buffer, start)
                record = Record(index, value)
            except (ValueError, RecursionError) as error:
                end = _element_end(self._buffer, start)
                record = Record(index, self._buffer[start:end], _problem(error))
                # Incomplete, not faulty, as long as the element's end has not been read
                if end == len(self._buffer) and self._ended:
                    raise BrokenFileError(f"{self.place(index)}: the element has no end ({_problem(error)})") from None
            if end < len(self._buffer) or self._ended:
                self._position = end
                return record
            if len(self._buffer) - start > _LONGEST_ROW:
                raise BrokenFileError(f"{self.place(index)}: no end of the element within {_LONGEST_ROW:,} characters")
            self._fill()

    def place(self, index: int) -> str:
        line = self._lines_before + self._buffer.count("\n", 0, self._position) + 1
        return f"index {index} (line {line})"

    def _fill(self) -> None:
        """Drop what was read; reading twice as much each time keeps a long row linear."""
        self._lines_before += self._buffer.count("\n", 0, self._position)
        rest = self._buffer[self._position :]
        more = self._text.read(max(_CHUNK, len(rest)))
        self._ended = not more
        self._buffer, self._position = rest + more, 0


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateKeyError("a key is there twice")
    return found


def _parse(decoder: json.JSONDecoder, line: str, number: int) -> Record:
    try:
        return Record(number, decoder.decode(line))
    except (ValueError, RecursionError) as error:
        return Record(number, line, _problem(error))


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error) if isinstance(error, _DuplicateKeyError) else "not valid JSON: a number is too long"


def _element_end(buffer: str, start: int) -> int:
    """Where the element at `start` ends by its brackets alone; the buffer's end if it goes on behind it."""
    depth = 0
    for match in _STRUCTURE.finditer(buffer, start):
        mark = match.group()
        if mark == '"':
            break  # a string that does not end
        if depth == 0 and mark in ",]":
            return match.start()
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
            if depth <= 0:
                return match.end()
    return len(buffer)
