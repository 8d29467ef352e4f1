"""Estimates, without reading the rows, how many convert will read; its progress bar then shows the time left."""

from pathlib import Path

from glm2core.data.sources import find_files, open_rows, parquet_parts, rows_in_parquet
from glm2core.errors import UserError
from glm2core.params import ConvertParams, Source

_CHUNK = 1 << 22


def rows_ahead(params: ConvertParams) -> int | None:
    """Number of rows in all sources, counting each line of a text file as a row.

    None if the rows of a source can't be counted without reading the source.
    """
    counts = [_of_source(source) for source in params.sources]
    return sum(count for count in counts if count is not None) if None not in counts else None


def _of_source(source: Source) -> int | None:
    if source.generate is not None:
        return source.generate.conversations
    if source.analysis is not None:
        return source.analysis.rows + (source.analysis.held_out_rows if source.held_out else 0)
    pattern = str(source.path)
    try:
        files = parquet_parts(pattern, "") or find_files(pattern, "")
        counts = [_of_file(file, source) for file in files]
    except (UserError, OSError, ValueError):
        return None  # convert reports the error and where it is
    return sum(count for count in counts if count is not None) if None not in counts else None


def _of_file(path: Path, source: Source) -> int | None:
    if source.encoding is None and path.suffix == ".parquet":
        return rows_in_parquet(path)
    rows = open_rows(path, source.encoding, source.columns)
    if rows.kind == "parquet":
        return rows_in_parquet(path)
    if rows.compression or rows.unit != "line" or not rows.encoding.startswith("utf-8"):
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
