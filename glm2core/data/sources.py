"""Raw files, row by row: JSON arrays, JSON lines, CSV and parquet, plain or gzip, never loaded whole.

A row that can't be parsed is handed out as a problem with its place and raw text, so that the
caller can keep it; only a file that can't be read on is an error.
"""

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from glm2core.data.json_rows import BrokenFileError, Record, read_array, read_lines
from glm2core.data.tables import read_csv, read_parquet
from glm2core.errors import UserError
from glm2core.files import project_root, resolve_path

_HEAD = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowFile:
    """A raw file whose kind is known.

    unit: what its rows are counted in: `line` (from 1) or `index` (from 0).
    columns: the only ones that are read of a parquet file; None = all.
    """

    path: Path
    kind: str
    encoding: str
    compressed: bool
    columns: frozenset[str] | None = None

    @property
    def unit(self) -> str:
        return "index" if self.kind in ("JSON array", "parquet") else "line"

    @property
    def description(self) -> str:
        extras = [self.encoding] if self.encoding not in ("utf-8", "utf-8-sig", "binary") else []
        return ", ".join([self.kind, *extras, *(["gzip"] if self.compressed else [])])

    def __iter__(self) -> Iterator[Record]:
        with _readable(self.path):
            if self.kind == "parquet":
                yield from read_parquet(self.path, self.columns)
            else:
                with self._open_text() as text:
                    reader = {"JSON array": read_array, "JSON lines": read_lines, "CSV": read_csv}[self.kind]
                    yield from reader(text)

    @contextmanager
    def _open_text(self) -> Iterator[TextIO]:
        # What can't be decoded becomes a lone surrogate, so that its row alone is rejected, with its place
        errors = "surrogateescape" if self.encoding.startswith("utf-8") else "surrogatepass"
        newline = "" if self.kind == "CSV" else None
        with _open(self.path, self.compressed) as binary:
            yield io.TextIOWrapper(binary, encoding=self.encoding, errors=errors, newline=newline)


def open_rows(path: Path) -> RowFile:
    """Tell a file's kind, encoding and compression from its bytes, and its kind in doubt from its name.

    Raises:
        UserError: the file is missing, empty, or of no known kind.
    """
    with _readable(path):
        with path.open("rb") as binary:
            compressed = binary.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with _open(path, compressed) as binary:
            head = binary.read(_HEAD)
    if head.startswith(_PARQUET_MAGIC):
        if compressed:
            raise UserError(f"{path} is a gzipped parquet file, which can't be streamed: unpack it with gunzip.")
        return RowFile(path, "parquet", "binary", compressed=False)
    encoding = json.detect_encoding(head)
    start = head.decode(encoding, errors="replace").lstrip()
    if not start:
        raise UserError(f"{path} is empty. Remove it from convert.sources, or put rows into it.")
    kind = _kind(path, start)
    return RowFile(path, kind, encoding, compressed)


def find_files(pattern: str, place: str) -> list[Path]:
    """The files that a path or glob in params names, sorted; DVC's own `.dvc` files are left out.

    Args:
        pattern: taken from the workspace, else from the project root.
        place: the params key, for the error.
    """
    if not glob.has_magic(pattern):
        return [_existing(resolve_path(pattern), place)]
    found = _matches(Path.cwd(), pattern) or _matches(project_root(), pattern)
    if not found:
        raise UserError(f"{place}: {pattern} matches no file under {project_root()}. Mend the pattern or add the file.")
    return found


def source_name(path: Path) -> str:
    """What a source is called in the data: relative to the project, so the same in every workspace."""
    inside = _in_project(path)
    if inside is not None:
        return inside.as_posix()
    if path.is_absolute() and ".." not in path.parts:
        return str(path)
    return Path(os.path.relpath(path, project_root())).as_posix()


def is_tracked(path: Path) -> bool:
    """Whether a source lies in data/raw, whose content DVC watches."""
    inside = _in_project(path)
    return inside is not None and inside.is_relative_to("data/raw")


def _in_project(path: Path) -> Path | None:
    """A path relative to the workspace or the project root; None outside both."""
    # As it is named first: DVC may keep a file of data/raw as a link into its cache
    for place in (Path(os.path.normpath(path.absolute())), path.resolve()):
        for root in (Path.cwd().resolve(), project_root()):
            if place.is_relative_to(root):
                return place.relative_to(root)
    return None


def _kind(path: Path, start: str) -> str:
    if start[0] == "[":
        return "JSON array"
    if start[0] == "{" or {".jsonl", ".ndjson"} & set(path.suffixes):
        return "JSON lines"
    if ".csv" in path.suffixes:
        return "CSV"
    raise UserError(
        f"{path} starts with {start[:20]!r}: not a JSON array, JSON lines or parquet. A CSV file must be named .csv."
    )


def _matches(root: Path, pattern: str) -> list[Path]:
    # Path.glob refuses absolute patterns
    found = map(Path, glob.glob(str(root / Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    return sorted(p for p in found if p.is_file() and p.suffix != ".dvc")


def _existing(path: Path, place: str) -> Path:
    if path.is_dir():
        raise UserError(f"{place}: {path} is a folder. Name its files with a glob, such as {path}/*.json.")
    if not path.exists():
        pulled = Path(f"{path}.dvc").exists()
        fix = "Run `dvc pull` to fetch it." if pulled else "Mend the path, or put the file there."
        raise UserError(f"{place}: {path} does not exist. {fix}")
    return path


def _open(path: Path, compressed: bool) -> BinaryIO:
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a sentence."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged or cut-off gzip file ({error}). Fetch it again.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid {error.encoding} ({error.reason}): cut off or damaged. Fetch it again."
        ) from error
    except BrokenFileError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
