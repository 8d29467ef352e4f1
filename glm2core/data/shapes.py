"""Detects how a text's rows are laid out, from the start of the text, and recognizes files that are not text."""

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
    key: the key of the array, if the rows are in an array inside an object; otherwise None.
    delimiter: the delimiter between fields, if the text is CSV.
    """

    kind: str
    key: str | None = None
    delimiter: str = ","


def foreign_kind(head: bytes) -> str | None:
    """If a file with these first bytes can't be read as text, its kind and how to fix it; otherwise None."""
    if head[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        return "a tar archive. Unpack it"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def shape_of(start: str, suffixes: set[str], columns: Mapping[str, str] | None = None) -> Shape | None:
    """Detect how the rows of a text are laid out; None if the layout is not a known one.

    Args:
        start: the start of the text, without leading white space.
        suffixes: the suffixes in the file's name, in lower case; they are used only if the text is ambiguous.
        columns: maps standard column names to the names in the file; the names in the file then also count as known.
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
    """A guess why a row is not valid JSON, worded to be appended to an error message; empty if there is no guess."""
    text = text.strip()
    if text.startswith("<"):
        return " It looks like a web page; fetch the file itself."
    if re.match(r"[\[{]+\s*'", text) or re.search(r"[:,\[]\s*(None|True|False)\s*[,}\]]", text):
        return " It looks like Python's notation; write the rows with json.dumps."
    if text.endswith((",", "},]")):
        return " It ends in a comma; add [ before the first row and ] after the last row, or remove the commas."
    return ""


def _objects_shape(start: str, columns: Mapping[str, str] | None) -> Shape:
    """The shape of a text that starts with `{`; it is JSON lines unless the first object shows a different shape."""
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
        # The first object is faulty, or longer than the part of the text that is known
        broken_off = re.fullmatch(r'(\{\s*(?:"[^"]*")?)(?:\s*:\s*[\[{]?\s*)?', line)
        return Shape("JSON objects" if broken_off and not rest.startswith(broken_off[1].strip()) else "JSON lines")
    behind = start[end:].lstrip(" \t\r")
    return Shape("JSON lines" if "\n" not in start[:end] and behind[:1] != "{" else "JSON objects")


def _array_key(start: str, known: set[str]) -> str | None:
    """The key under which an object holds an array of rows, as in `{"data": [{...}, ...]}`; None for a single row."""
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
    """The delimiter in a CSV header, and whether the names in the header include a known format's columns."""
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
