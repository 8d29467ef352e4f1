"""Files that are whole or absent: atomic writes, hashes, and paths against the project root."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glm2core.errors import UserError

_CHUNK = 1 << 20


def project_root() -> Path:
    """The folder that holds the project, also from DVC's temporary workspaces.

    `dvc exp run --temp` and `dvc queue start` run stages in a copy that is deleted afterwards;
    DVC_ROOT still names the project, so what must outlive the run is kept there.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def resolve_path(path: str | Path) -> Path:
    """Where a path from params lies: in the workspace if it is there, else under the project root.

    Untracked files and `../` paths do not exist in DVC's temporary workspaces.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or path.exists():
        return path
    return project_root() / path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it takes the name only if all went well.

    An existing `path` is replaced. After an error or a kill `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove(partial)
    try:
        yield partial
        _sync(partial)
        if path.is_dir():
            _remove(path)
        partial.replace(path)
        _sync_entry(path.parent)
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}. "
            f"Free space or mend the rights of {path.parent}, then run again."
        ) from error
    finally:
        _remove(partial)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _sync_entry(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
