"""Writes parquet files, and reads those of earlier stages.

The files are always written by pyarrow, with zstd, one thread and checksums. DVC hashes the bytes of files, and a
different library would write different bytes for the same rows. Each page has a checksum, so a damaged file causes an
error in the stage that reads it, and never wrong numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glm2core.errors import UserError, printable


@contextmanager
def parquet_writer(
    path: Path, schema: pa.Schema, dictionary_columns: bool | Sequence[str] = True
) -> Iterator[pq.ParquetWriter]:
    """Yield a writer; afterwards, even after an error, the footer is written and the file is closed."""
    writer = pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=dictionary_columns, write_page_checksum=True
    )
    try:
        yield writer
    finally:
        try:
            writer.close()
        except OSError:
            writer.is_open = False  # otherwise its finalizer tries again and prints a traceback
            raise


def rows_at(
    path: Path, stage: str, places: Sequence[int], columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return the rows at `places` in a stage's file, in the order of `places`; only their row groups are read.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[int, dict[str, Any]] = {}
    with open_parquet(path, stage) as file, damage_told(path, stage):
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if inside := [place for place in places if start <= place < end]:
                table = file.read_row_group(group, columns)
                found |= {place: table.slice(place - start, 1).to_pylist()[0] for place in inside}
            start = end
    return [found[place] for place in places]


def open_parquet(path: Path, stage: str) -> pq.ParquetFile:
    """Open a stage's file for reads that verify checksums; every read must be wrapped in `damage_told`.

    Raises:
        UserError: the end of the file is missing or damaged.
    """
    with damage_told(path, stage):
        return pq.ParquetFile(path, page_checksum_verification=True)


@contextmanager
def damage_told(path: Path, stage: str) -> Iterator[None]:
    """Turn errors from reading a stage's damaged or truncated file into an error message."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):  # not the file's fault
            raise
        reason = printable(next(iter(str(error).splitlines()), ""))[:200]
        raise UserError(f"{path} is a damaged or cut-off parquet file ({reason}). Run dvc repro {stage}.") from error


def require_whole(path: Path, stage: str) -> None:
    """Read the whole file once to verify its checksums, before a library that ignores checksums reads it.

    Raises:
        UserError: the file is damaged.
    """
    with open_parquet(path, stage) as file, damage_told(path, stage):
        for group in range(file.num_row_groups):
            file.read_row_group(group)
