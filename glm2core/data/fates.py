"""Writes what happened to each raw row to a parquet file, from which the reports are computed."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa

from glm2core.parquet import parquet_writer

FATES_FILE = "fates.parquet"
Fate = Literal["kept", "rejected", "duplicate", "not taken"]
SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),  # the row's line or index, as in rejected.jsonl
        pa.field("fate", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # only for rejected rows
    ]
)
_ROW_GROUP_ROWS = 1 << 16


class FatesWriter:
    """Collects one entry for each raw row, and writes the entries one row group at a time."""

    def __init__(self, folder: Path) -> None:
        self._closing = ExitStack()
        self._file = self._closing.enter_context(parquet_writer(folder / FATES_FILE, SCHEMA))
        self._rows: list[tuple[str, int, Fate, str | None]] = []

    def add(self, source: str, number: int, fate: Fate, reason: str | None = None) -> None:
        self._rows.append((source, number, fate, reason))
        if len(self._rows) == _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(c, f.type) for c, f in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._rows.clear()

    def __enter__(self) -> "FatesWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._closing:
            if error is None and self._rows:
                self._flush()
