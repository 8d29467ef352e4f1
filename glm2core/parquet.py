"""The one way in which parquet is written here: zstd, one writer, one thread.

DVC hashes bytes, and every other writer lays out other bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def parquet_writer(
    path: Path, schema: pa.Schema, dictionary_columns: bool | Sequence[str] = True
) -> Iterator[pq.ParquetWriter]:
    """A writer that closes the file with its footer, also after an error."""
    writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary_columns)
    try:
        yield writer
    finally:
        try:
            writer.close()
        except OSError:
            writer.is_open = False  # or its finalizer tries again, and prints a traceback at a person
            raise


def rows_at(path: Path, places: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Some rows of a file, in the order of `places`; only the row groups that hold them are read, one at a time."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if inside := [place for place in places if start <= place < end]:
                table = file.read_row_group(group, columns)
                found |= {place: table.slice(place - start, 1).to_pylist()[0] for place in inside}
            start = end
    return [found[place] for place in places]
