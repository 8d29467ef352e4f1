"""Reads raw files row by row, without loading a whole file into memory.

The files may be JSON arrays, JSON lines, JSON objects, CSV or parquet. All of them except parquet files may be
compressed as a whole. A row that can't be parsed is yielded as a problem with its place and raw text, so that the
caller can keep the row. An error is raised only if the rest of the file can't be read.
"""

import glob
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from glm2core.conversation import undecodable
from glm2core.data.compression import MAGIC_LENGTH, compression_of, open_binary
from glm2core.data.csv_rows import read_csv
from glm2core.data.json_rows import BrokenFileError, Record, read_array, read_lines, read_objects
from glm2core.data.parquet_rows import count_parquet_rows, parquet_columns, read_parquet
from glm2core.data.shapes import foreign_kind, shape_of
from glm2core.errors import UserError, printable
from glm2core.files import project_root, refuse_lfs_pointer, require_utf8_name, resolve_path

_HEAD = 1 << 16
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowFile:
    """A raw file whose kind is known.

    compression: gzip, bzip2, xz, zstd, or None.
    key: the key of the array, if the rows are in an array inside an object; otherwise None.
    delimiter: the delimiter between fields, if the file is CSV.
    unit: what row numbers count, which is `line` (from 1) or `index` (from 0).
    columns: the columns to read from a parquet file; None = all.
    """

    path: Path
    kind: str
    encoding: str
    compression: str | None
    key: str | None = None
    delimiter: str = ","
    columns: frozenset[str] | None = None

    @property
    def unit(self) -> str:
        return "line" if self.kind in ("JSON lines", "CSV") else "index"

    @property
    def description(self) -> str:
        extras = [f"in {self.key!r}"] if self.key is not None else []
        extras += [f"{'tabs' if self.delimiter == chr(9) else self.delimiter} between"] if self.delimiter != "," else []
        extras += [self.encoding] if self.encoding not in ("utf-8", "utf-8-sig", "binary") else []
        return ", ".join([self.kind, *extras, *([self.compression] if self.compression else [])])

    def column_names(self) -> list[str]:
        """The names of a parquet file's columns; an empty list for other files, whose rows contain the names."""
        with _readable(self.path, self.compression):
            return parquet_columns(self.path) if self.kind == "parquet" else []

    def __iter__(self) -> Iterator[Record]:
        with _readable(self.path, self.compression):
            if self.kind == "parquet":
                yield from read_parquet(self.path, self.columns)
            else:
                with self._open_text() as text:
                    yield from self._rows(text)

    def _rows(self, text: TextIO) -> Iterator[Record]:
        match self.kind:
            case "JSON array":
                return read_array(text, self.key)
            case "JSON objects":
                return read_objects(text)
            case "CSV":
                return read_csv(text, self.delimiter)
            case _:
                return read_lines(text)

    @contextmanager
    def _open_text(self) -> Iterator[TextIO]:
        # An undecodable byte becomes a lone surrogate, so that only its row is rejected and the row's place is reported
        errors = "surrogatepass" if self.encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        newline = "" if self.kind == "CSV" else None
        with open_binary(self.path, self.compression) as binary:
            yield io.TextIOWrapper(binary, encoding=self.encoding, errors=errors, newline=newline)


def open_rows(path: Path, encoding: str | None = None, columns: Mapping[str, str] | None = None) -> RowFile:
    """Detect a file's kind, encoding and compression from its bytes.

    If the bytes fit several kinds, the file's name decides.

    Args:
        encoding: the encoding of a text file; None = detect UTF-8, UTF-16 or UTF-32.
        columns: maps standard column names to the names in this file.

    Raises:
        UserError: the file is missing or empty, or its kind is not known.
    """
    compression = None
    with _readable(path, None), path.open("rb") as binary:
        compression = compression_of(binary.read(MAGIC_LENGTH))
    with _readable(path, compression), open_binary(path, compression) as binary:
        head = binary.read(_HEAD)
    if head.startswith(_PARQUET_MAGIC):
        if compression:
            raise UserError(f"{path} is a parquet file in {compression}, which can't be streamed. Decompress it first.")
        return RowFile(path, "parquet", "binary", None)
    refuse_lfs_pointer(path, head)
    if foreign := foreign_kind(head):
        raise UserError(f"{path} is {foreign}.")
    encoding = encoding or json.detect_encoding(head)
    start = head.decode(encoding, errors="surrogateescape" if encoding == "utf-8" else "replace").lstrip()
    if not start:
        rest = " for its first 65,536 bytes" if len(head) == _HEAD else ""
        raise UserError(f"{path} is empty{rest}. Remove it from convert.sources, or add rows to it.")
    shape = shape_of(start, {suffix.lower() for suffix in path.suffixes}, columns)
    if shape is None:
        raise UserError(_no_kind(path, start))
    return RowFile(path, shape.kind, encoding, compression, shape.key, shape.delimiter)


def find_files(pattern: str, place: str) -> list[Path]:
    """The files that a path or glob in params matches, sorted; DVC's own `.dvc` files are left out.

    Args:
        pattern: the path or glob, which is looked up in the workspace first and then in the project root.
        place: the params key to name in error messages.
    """
    if not glob.has_magic(pattern) or resolve_path(pattern).exists():  # a file's name may contain brackets
        return [_existing(resolve_path(pattern), place)]
    found = _matches(Path.cwd(), pattern) or _matches(project_root(), pattern)
    if not found:
        raise UserError(f"{place}: {pattern} matches no file under {project_root()}. Fix the pattern, or add the file.")
    for file in found:
        require_utf8_name(file)
    return found


def parquet_parts(pattern: str, place: str) -> list[Path]:
    """The parquet parts in a folder that a distributed engine wrote, sorted by name; an empty list for other paths.

    Raises:
        UserError: some parts are in subfolders, whose names would hold column values.
    """
    folder = resolve_path(pattern)
    if not folder.is_dir():
        return []
    parts = sorted(path for path in folder.glob("*.parquet") if path.is_file() and path.name[0] not in "._")
    nested = next((path for path in sorted(folder.rglob("*.parquet")) if path.parent != folder), None)
    if nested is not None:
        raise UserError(
            f"{place}: {folder} contains {nested.relative_to(folder)}, a part in a subfolder. Write all parts into one "
            "folder (without partitionBy), or name the files with a glob."
        )
    return parts


def rows_in_parquet(path: Path) -> int:
    """Number of rows in a parquet source, as recorded in its footer.

    Raises:
        UserError: the file is damaged.
    """
    with _readable(path, None):
        return count_parquet_rows(path)


def source_name(path: Path) -> str:
    """A source's name in the data, which is the same in every workspace because it is relative to the project."""
    inside = _in_project(path)
    if inside is not None:
        return inside.as_posix()
    if path.is_absolute() and ".." not in path.parts:
        return str(path)
    return Path(os.path.relpath(path, project_root())).as_posix()


def is_tracked(path: Path) -> bool:
    """Whether a source is in data/raw, the folder whose content DVC tracks."""
    inside = _in_project(path)
    return inside is not None and inside.is_relative_to("data/raw")


def _in_project(path: Path) -> Path | None:
    """The path relative to the workspace or the project root; None if the path is outside both."""
    # Links are followed only in the second try, because DVC may keep a file in data/raw as a link into its cache
    for place in (Path(os.path.normpath(path.absolute())), path.resolve()):
        for root in (Path.cwd().resolve(), project_root()):
            if place.is_relative_to(root):
                return place.relative_to(root)
    return None


def _no_kind(path: Path, start: str) -> str:
    hint = " A CSV file's name must end in .csv, or its header must name a format's columns."
    cuts = (3, 4) if len(start) > _HEAD // 4 else (0,)  # the file's start may end in the middle of a character
    if wrong := [found for cut in cuts if (found := undecodable(start[: len(start) - cut]))]:
        hint = f" It holds {max(wrong, key=len)}."  # the longer message names an encoding
    return f"{path} starts with {start[:20]!r}, which is not a known form of JSON, CSV or parquet.{hint}"


def _matches(root: Path, pattern: str) -> list[Path]:
    # Path.glob refuses absolute patterns
    found = map(Path, glob.glob(str(root / Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    return sorted(p for p in found if p.is_file() and p.suffix != ".dvc")


def _existing(path: Path, place: str) -> Path:
    if path.is_dir():
        raise UserError(
            f"{place}: {path} is a folder without parquet parts. Name its files with a glob, such as {path}/*.json."
        )
    if not path.exists():
        pulled = Path(f"{path}.dvc").exists()
        fix = "Run `dvc pull` to fetch it." if pulled else "Fix the path, or put the file there."
        raise UserError(f"{place}: {path} does not exist. {fix}")
    if not path.is_file():
        raise UserError(f"{place}: {path} is a pipe or a device, which can't be read twice. Write its rows to a file.")
    return path


@contextmanager
def _readable(path: Path, compression: str | None) -> Iterator[None]:
    """Turn errors from reading a damaged file into a UserError with an error message."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(_damaged(path, compression, error)) from error
    except UnicodeDecodeError as error:
        reason = f"{error.encoding} ({error.reason})"
        raise UserError(f"{path} is not valid {reason}; the file is cut off or damaged. Fetch it again.") from error
    except BrokenFileError as error:
        raise UserError(f"{path}: {printable(str(error))}") from error
    except OSError as error:
        if compression and not error.errno:  # the error comes from a decoder
            raise UserError(_damaged(path, compression, error)) from error
        raise UserError(f"{path} can't be read: {error.strerror or printable(str(error))}.") from error


def _damaged(path: Path, compression: str | None, error: Exception) -> str:
    if "emory" in str(error):
        return f"{path} needs too much memory to decompress ({error}). Compress it again with the usual settings."
    return f"{path} is a damaged or cut-off {compression} file ({printable(str(error))}). Fetch it again."
