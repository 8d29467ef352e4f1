"""Detects from a text's start how its rows are laid out; for other files, tells what they are likely to be."""

import csv
import re
from collections.abc import Mapping
from typing import NamedTuple

from glm2core.data.formats import COLUMN_NAMES, UNUSABLE, detect
from glm2core.data.json_rows import json_decoder

_SPACE = re.compile(r"[ \t\n\r]*")
_DELIMITERS = ",;\t"
_MAGIC = {
    b"PK\x03\x04": "a zip file (a spreadsheet, perhaps). Unpack it with unzip, or save it as CSV",
    b"7z\xbc\xaf\x27\x1c": "a 7z file. Unpack it",
    b"Rar!\x1a\x07": "a rar file. Unpack it",
    b"%PDF-": "a PDF file. Extract its text",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file. Save it as CSV",
    b"SQLite format 3\0": "an SQLite database. Export a table as CSV",
    b"ARROW1\0\0": "an Arrow (Feather) file. Write it as parquet",
}
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257


class Shape(NamedTuple):
    """How the rows of a text are laid out.

    kind: JSON array, JSON lines, JSON objects or CSV.
    key: the array's key, if the text is an object that holds the array.
    delimiter: the delimiter of a CSV file.
    """

    kind: str
    key: str | None = None
    delimiter: str = ","


def foreign_kind(head: bytes) -> str | None:
    """The kind of a file that must not be read as text, judged by its first bytes, and the fix; None for others."""
    if head[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        return "a tar archive. Unpack it"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def shape_of(start: str, suffixes: set[str], columns: Mapping[str, str] | None = None) -> Shape | None:
    """How the rows of a text are laid out; None = in no known way.

    Args:
        start: the start of the text, without leading white space.
        suffixes: those of the file's name, in lower case; they decide if the text is ambiguous.
        columns: standard column name -> its name in the file; these names count as known.
    """
    if start[0] == "[":
        return Shape("JSON array")
    if start[0] == "{":
        return _objects_shape(start, columns)
    if suffixes & {".jsonl", ".ndjson"}:
        return Shape("JSON lines")
    delimiter, known = _delimiter(start, columns)
    if known or suffixes & {".csv", ".tsv"}:
        return Shape("CSV", delimiter=delimiter)
    return None


def likely_shape(text: str) -> str:
    """A sentence about what a row that is not valid JSON looks like, to be appended; empty if nothing is likely."""
    text = text.strip()
    if text.startswith("<"):
        return " It looks like a web page; fetch the file itself."
    if re.match(r"[\[{]+\s*'", text) or re.search(r"[:,\[]\s*(None|True|False)\s*[,}\]]", text):
        return " It looks like Python's notation; write the rows with json.dumps."
    if text.endswith((",", "},]")):
        return " It ends in a comma; add [ before the first row and ] after the last, or remove the commas."
    return ""


def _objects_shape(start: str, columns: Mapping[str, str] | None) -> Shape:
    """The shape of a text that starts with `{`: one object per line, unless the first object shows another shape."""
    line, _, rest = start.partition("\n")
    one_line = _is_json(line)
    rest = rest.lstrip()
    key = _array_key(start, {*COLUMN_NAMES, *UNUSABLE, *(columns or {}).values()})
    if key is not None and not rest.startswith("{"):
        return Shape("JSON array", key)
    if one_line:
        return Shape("JSON lines")
    try:
        _, end = json_decoder().raw_decode(start)
    except (ValueError, RecursionError):
        # Faulty, or longer than the known start
        broken_off = re.fullmatch(r'(\{\s*(?:"[^"]*")?)(?:\s*:\s*[\[{]?\s*)?', line)
        return Shape("JSON objects" if broken_off and not rest.startswith(broken_off[1].strip()) else "JSON lines")
    behind = start[end:].lstrip(" \t\r")
    return Shape("JSON lines" if "\n" not in start[:end] and behind[:1] != "{" else "JSON objects")


def _array_key(start: str, known: set[str]) -> str | None:
    """The key of the array of objects in an object, as in `{"data": [{...}, ...]}`; None for a row."""
    decoder = json_decoder()
    position = _after_space(start, 1)
    try:
        while True:
            key, position = decoder.raw_decode(start, position)
            position = _after_space(start, position)
            if not isinstance(key, str) or key in known or start[position : position + 1] != ":":
                return None
            position = _after_space(start, position + 1)
            if start[position : position + 1] == "[" and start[_after_space(start, position + 1) :][:1] == "{":
                return key
            value, position = decoder.raw_decode(start, position)
            position = _after_space(start, position)
            if isinstance(value, (list, dict)) or start[position : position + 1] != ",":
                return None
            position = _after_space(start, position + 1)
    except (ValueError, RecursionError):
        return None


def _delimiter(start: str, columns: Mapping[str, str] | None) -> tuple[str, bool]:
    """The delimiter of a CSV header, and whether a format's columns are among its names."""
    line = start.splitlines()[0]
    found = []
    for delimiter in _DELIMITERS:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            names = []
        known = len(names) > 1 and detect(dict.fromkeys(names), columns) is not None
        found.append((known, len(names), -_DELIMITERS.index(delimiter), delimiter))
    known, *_, delimiter = max(found)
    return delimiter, known


def _is_json(text: str) -> bool:
    try:
        json_decoder().decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
