"""The columns of a raw file: which are read, which are not, and which name a missing column is likely to have."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm2core.data.formats import ANSWER, COLUMNS, QUESTION, unread_columns

_MOST_NAMES = 1000  # remembered of one file
_OTHER_NAMES = (
    {"instruction", "prompt", "question", "query", "ask"},
    {"output", "response", "answer", "completion", "target", "reply", "label"},
    {"input", "context", "text", "passage"},
    {"messages", "conversations", "conversation", "dialogue", "chat"},
)


@dataclass
class ColumnUse:
    """Counts which columns the rows of a file have, and which of these are not read.

    read, unread: names in the file, in order of first appearance.
    lost: for each column that is not read although its name is known, the number of rows with a value in it.
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
        """Required columns that no row has."""
        needed = (QUESTION[self.row_format], ANSWER.get(self.row_format))
        standard = [name for name in needed if name is not None]
        return [name for name in file_names(standard, self.columns) if self.rows and name not in self.read]


def file_names(standard: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """The names that standard columns have in a file."""
    return [columns.get(name, name) for name in standard]


def nearest(missing: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """For missing columns, by name, the column of the file that is likely meant."""
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
