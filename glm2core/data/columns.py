"""Tells which columns of a raw file are read and which are not, and finds likely names for missing columns."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm2core.data.formats import ANSWER, COLUMNS, QUESTION, unread_columns

_MOST_NAMES = 1000  # the most column names remembered for one file
_OTHER_NAMES = (
    {"instruction", "prompt", "question", "query", "ask"},
    {"output", "response", "answer", "completion", "target", "reply", "label"},
    {"input", "context", "text", "passage"},
    {"messages", "conversations", "conversation", "dialogue", "chat"},
)


@dataclass
class ColumnUse:
    """Records which columns occur in a file's rows, and which of these columns are not read.

    read, unread: the columns' names in the file, in the order of their first appearance.
    lost: maps each known column that this format does not read to the number of rows with a value in that column.
    """

    row_format: str
    columns: Mapping[str, str]
    rows: int = 0
    rows_losing: int = 0
    read: dict[str, None] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, row: Any) -> None:
        if not isinstance(row, dict):
            return
        self.rows += 1
        for name in file_names(COLUMNS[self.row_format], self.columns):
            if name in row:
                self.read[name] = None
        losing = False
        for name, known in unread_columns(row, self.row_format, self.columns):
            if len(self.unread) < _MOST_NAMES:
                self.unread[name] = None
            if known and (name in self.lost or len(self.lost) < _MOST_NAMES):
                self.lost[name] += 1
                losing = True
        self.rows_losing += losing

    def missing(self) -> list[str]:
        """The required columns that occur in no row."""
        needed = (QUESTION[self.row_format], ANSWER.get(self.row_format))
        standard = [name for name in needed if name is not None]
        return [name for name in file_names(standard, self.columns) if self.rows and name not in self.read]


def file_names(standard: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """The names under which standard columns appear in a file."""
    return [columns.get(name, name) for name in standard]


def nearest(missing: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """Map each missing column to the column that was probably meant, if the file contains such a column."""
    left = [str(name) for name in there][:_MOST_NAMES]
    found = {}
    for name in missing:
        alike = next((names for names in _OTHER_NAMES if name in names), set())
        near = [other for other in left if other.strip().lower() in alike | {name}]
        near = near or difflib.get_close_matches(name, left, n=1, cutoff=0.6)
        if near:
            found[name] = near[0]
            left.remove(near[0])
    return found
