"""Reads JSON as a stream, one array element or line at a time, and reports the place of each.

`json.load` needs the whole file in memory and stops at the first fault. Here, a faulty element is yielded as a problem,
and reading continues after the element. The length of a row is limited in every text file, so that a small file can't
take much memory, even if it is compressed.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

LONGEST_ROW = 1 << 24  # characters; a longer row is more likely to lack a bracket or quote than to be meant
_MOST_PARTS = 1 << 18  # lists and objects in one row; an empty list takes 30 times as much memory as its text
_KEPT = 1000  # how many characters are kept from the start of a row that exceeds a limit
_CHUNK = 1 << 20
_SPACES = " \t\n\r"
_SPACE = re.compile(f"[{_SPACES}]*")
# The quantifiers are possessive, so that an unfinished string fails at once, without backtracking through megabytes
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_MARK = re.compile(r'["\[\]{},]')
_REST_OF_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class Record(NamedTuple):
    """One raw row; if the row can't be parsed, `value` is its text or the start of its text, and `problem` says why.

    whole: a function that returns the row with all its columns; None if `value` already contains all columns.
    """

    number: int
    value: Any
    problem: str | None = None
    whole: Callable[[], Any] | None = None


class BrokenFileError(ValueError):
    """The rest of the file can't be read; the error message names the place."""


class _DuplicateKeyError(ValueError):
    pass


def too_long(number: int, start: str) -> Record:
    """The record for a row that is longer than `LONGEST_ROW`; it keeps only the start of the row."""
    return Record(number, start[:_KEPT], f"the row is longer than {LONGEST_ROW:,} characters; only its start is kept")


def read_lines(text: TextIO) -> Iterator[Record]:
    """Yield the JSON value in each line; lines are numbered from 1, and empty lines are skipped."""
    decoder = json_decoder()
    number = 0
    while line := text.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW and not line.endswith("\n"):
            yield too_long(number, line)
            while (rest := text.readline(_CHUNK)) and not rest.endswith("\n"):
                pass
        elif line := line.strip():
            yield _parse(decoder, line, number)


def read_array(text: TextIO, key: str | None = None) -> Iterator[Record]:
    """Yield the elements of one JSON array, numbered from 0.

    Args:
        key: the key that holds the array, if the file is an object; None if the file is the array itself.

    Raises:
        BrokenFileError: the array has no closing bracket, or more text follows the array.
    """
    window = _Window(text)
    if key is not None:
        window.enter(key)
    window.peek()  # the opening bracket
    window.advance()
    index = 0
    while window.peek() != "]":
        yield window.element(index)
        index += 1
        mark = window.peek()
        if mark == ",":
            window.advance()
        elif mark != "]":
            found = repr(mark) if mark else "the end of the file"
            raise BrokenFileError(f"{window.place(index)}: expected ',' or ']', found {found}")
    window.advance()
    if key is not None:
        _leave(window, key, index)
    if extra := window.peek():
        raise BrokenFileError(
            f"{window.place(index)}: {extra!r} follows the end of the array; a file may hold only one array"
        )


def read_objects(text: TextIO) -> Iterator[Record]:
    """Yield consecutive JSON objects, numbered from 0; an object may span any number of lines."""
    window = _Window(text)
    index = 0
    while mark := window.peek():
        if mark != "{":
            hint = "; to make the file a JSON array, add [ at its start and ] at its end" if mark == "," else ""
            raise BrokenFileError(f"{window.place(index)}: expected the next object, found {mark!r}{hint}")
        yield window.element(index)
        index += 1


def _leave(window: "_Window", key: str, index: int) -> None:
    """Read from the array's end to the end of the object around it; no later key may hold a list or an object."""
    while window.peek() == ",":
        window.advance()
        window.peek()
        name = window.element(index).value
        if window.peek() == ":":
            window.advance()
            window.peek()
            if isinstance(window.element(index).value, (list, dict)):
                raise BrokenFileError(
                    f"{window.place(index)}: the object holds both {key!r} and {str(name)[:80]!r}, so it is unclear "
                    "which of the two holds the rows. Write each list of rows to its own file"
                )
    if window.peek() != "}":
        raise BrokenFileError(f"{window.place(index)}: the object around the array {key!r} has no end")
    window.advance()


class _Window:
    """The part of the text that is in memory, which is at most one element and one chunk."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._decoder = json_decoder()
        self._buffer = ""
        self._position = 0
        self._lines_before = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space; an empty string at the end of the file."""
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
        """Step over the character that `peek` returned."""
        self._position += 1

    def enter(self, key: str) -> None:
        """Step into the object that holds the array `key`, and stop at the array's opening bracket."""
        self.peek()
        self.advance()
        while True:
            self.peek()
            name = self.element(0).value
            self.peek()
            self.advance()
            self.peek()
            if name == key:
                return
            self.element(0)
            self.peek()
            self.advance()

    def element(self, index: int) -> Record:
        """Read the element that starts where `peek` stopped."""
        while True:
            start = self._position
            if len(self._buffer) - start > 2 * _CHUNK and self._parts(start) > _MOST_PARTS:
                return self._skip(index, _too_many_parts())
            try:
                value, end = self._decoder.raw_decode(self._buffer, start)
                record = Record(index, value)
            except (ValueError, RecursionError) as error:
                end = _element_end(self._buffer, start)
                record = Record(index, self._buffer[start:end], _problem(error))
                # As long as the element's end has not been read, the element is incomplete rather than faulty
                if end == len(self._buffer) and self._ended:
                    raise BrokenFileError(f"{self.place(index)}: the element has no end ({_problem(error)})") from None
            whole = end < len(self._buffer) or self._ended
            if (end if whole else len(self._buffer)) - start > LONGEST_ROW:
                return self._skip(index, too_long(index, "").problem)
            if whole:
                self._position = end
                return record
            self._fill()

    def _parts(self, start: int) -> int:
        """Number of lists and objects in the part of the element at `start` that has been read."""
        end = _element_end(self._buffer, start)
        return self._buffer.count("{", start, end) + self._buffer.count("[", start, end)

    def _skip(self, index: int, problem: str | None) -> Record:
        """Skip to the element's end without holding it in memory."""
        record = Record(index, self._buffer[self._position : self._position + _KEPT], problem)
        depth, in_string = 0, False
        while True:
            if in_string:
                self._position = _REST_OF_STRING.match(self._buffer, self._position).end()  # type: ignore[union-attr]
                in_string = self._buffer[self._position : self._position + 1] != '"'
                if not in_string:
                    self._position += 1
            for match in () if in_string else _MARK.finditer(self._buffer, self._position):
                mark, self._position = match.group(), match.end()
                if depth == 0 and mark in ",]}":
                    self._position -= 1
                    return record
                if in_string := mark == '"':
                    break
                depth += (mark in "[{") - (mark in "]}")
                if depth == 0 and mark in "]}":
                    return record
            else:
                if not in_string:
                    self._position = len(self._buffer)
                if self._ended:
                    raise BrokenFileError(f"{self.place(index)}: the element has no end ({problem})")
                self._fill()

    def place(self, index: int) -> str:
        line = self._lines_before + self._buffer.count("\n", 0, self._position) + 1
        return f"index {index} (line {line})"

    def _fill(self) -> None:
        """Drop the parsed text and read more; each read doubles, up to a limit, so that long rows take linear time."""
        self._lines_before += self._buffer.count("\n", 0, self._position)
        self._buffer = rest = self._buffer[self._position :]
        more = self._text.read(max(_CHUNK, min(len(rest), LONGEST_ROW + 1 - len(rest))))
        self._ended = not more
        self._buffer, self._position = rest + more, 0


def json_decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_constant)


def _constant(name: str) -> float | None:
    """The value of a constant that Python and pandas add to JSON; NaN stands for an empty cell."""
    return None if name == "NaN" else float(name)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateKeyError("a key occurs twice")
    return found


def _parse(decoder: json.JSONDecoder, line: str, number: int) -> Record:
    if len(line) > _CHUNK and line.count("{") + line.count("[") > _MOST_PARTS:
        return Record(number, line[:_KEPT], _too_many_parts())
    try:
        return Record(number, decoder.decode(line))
    except (ValueError, RecursionError) as error:
        return Record(number, line, _problem(error))


def _too_many_parts() -> str:
    return f"the row holds more than {_MOST_PARTS:,} lists and objects; only its start is kept"


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error) if isinstance(error, _DuplicateKeyError) else "not valid JSON: a number is too long"


def _element_end(buffer: str, start: int) -> int:
    """Where the element at `start` ends, judged only by brackets and quotes; the buffer's end if no end is found."""
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
