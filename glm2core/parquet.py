"""The one way in which parquet is written here: zstd, one writer, one thread.

DVC hashes bytes, and every other writer lays out other bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
