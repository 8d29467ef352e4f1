"""Reads untrusted YAML, which may contain only plain values of bounded size.

Each error message says in one short sentence what is wrong and where.

Files are read as YAML 1.2, as DVC reads them, so `1e-4` is a number (in YAML 1.1 it is a string). Only text, numbers,
lists and keys with values are built. Tags, which ask for other types, are rejected.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
    ScalarEvent,
)

from glm2core.errors import UserError, printable, shown_names

_DEEPEST = 20
_MOST_VALUES = 10_000  # texts, numbers, lists and keys; those of an alias count each time
_LONGEST_REASON = 200
# What ruamel raises on invalid YAML, besides its own errors: for numbers of thousands of digits, impossible dates, and
# keys that can't be keys.
_NO_YAML = (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError)


def read_yaml_file(file: Path, most_bytes: int) -> str:
    """A YAML file's text.

    Raises:
        UserError: `file` is not a file, has more than `most_bytes`, or is not UTF-8.
        OSError: the file can't be read.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file. Remove it, or put the YAML file there.")
    with file.open("rb") as handle:
        content = handle.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"{file} has more than {most_bytes:,} bytes, more than it ever needs. Shorten it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not valid YAML: {error.reason} at byte {error.start:,}. Save it as UTF-8."
        ) from None


def parse_yaml(text: str, name: object) -> Any:
    """Return the values in a YAML text, or None if the text is empty.

    Args:
        name: the file's name, for error messages.

    Raises:
        UserError: the text is not YAML, or contains anything besides plain values of bounded size.
    """
    try:
        _Bounds(name).check(text)
        return YAML(typ="safe", pure=True).load(text)
    except UserError:
        raise
    except DuplicateKeyError as error:
        problem = printable(error.problem.split(" with value")[0])
        raise UserError(f"{name}, line {error.problem_mark.line + 1}: {_cut(problem)}. Keep one of the two.") from None
    except _NO_YAML as error:
        raise UserError(f"{name} is not valid YAML: {_reason(error)}. Fix that place.") from None


class _Bounds:
    """Counts the values in a text from its events, before any are built."""

    def __init__(self, name: object) -> None:
        self.name = name
        self.values = 0
        self.open: list[tuple[str | None, int]] = []  # anchors that are being read, and the count before each
        self.sizes: dict[str, int] = {}

    def check(self, text: str) -> None:
        """Raise a UserError at the first place where the text exceeds a bound or contains more than plain values."""
        for event in YAML(typ="safe", pure=True).parse(text):
            line = event.start_mark.line + 1
            if isinstance(event, AliasEvent):
                self.values += self._size(event.anchor, line)
            elif isinstance(event, CollectionEndEvent):
                anchor, before = self.open.pop()
                if anchor is not None:
                    self.sizes[anchor] = self.values - before
            elif isinstance(event, (ScalarEvent, CollectionStartEvent)):
                self._add(event, line)
            elif isinstance(event, DocumentStartEvent) and event.tags:
                raise self._error(line, "defines its own tags (%TAG); write plain values")
            if self.values > _MOST_VALUES:
                raise self._error(line, f"holds more than {_MOST_VALUES:,} values up to here; remove some")

    def _add(self, event: NodeEvent, line: int) -> None:
        if tag := getattr(event, "tag", None):
            raise self._error(line, f"has the tag {shown_names([tag])}; write the plain value, without a tag")
        if isinstance(event, CollectionStartEvent):
            self.open.append((event.anchor, self.values))
            if len(self.open) > _DEEPEST:
                raise self._error(line, f"is nested deeper than {_DEEPEST} levels; write it flatter")
        elif event.anchor is not None:
            self.sizes[event.anchor] = 1
        self.values += 1

    def _size(self, anchor: str, line: int) -> int:
        if anchor not in self.sizes:
            shown = shown_names([anchor])
            raise self._error(
                line, f"refers to *{shown}, which is not complete anywhere before this line; write the value out"
            )
        return self.sizes[anchor]

    def _error(self, line: int, what: str) -> UserError:
        return UserError(f"{self.name}, line {line}: {what}.")


def _reason(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    place = "" if mark is None else f", line {mark.line + 1}"
    first = str(problem or error or type(error).__name__).splitlines()
    return _cut(printable(first[0] if first else type(error).__name__)) + place


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
