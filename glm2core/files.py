"""Atomic writes, after which a file is complete or absent; hashes; and paths relative to the project root."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from glm2core.errors import UserError, printable

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Strings come first, so that these words stay unchanged inside strings.
_NOT_FINITE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|NaN|-?Infinity')
_TRIAL_BYTES = 1 << 20  # if the disk refuses even this little, that explains a failed write


def project_root() -> Path:
    """The project's folder, even if the stage runs in one of DVC's temporary workspaces.

    `dvc exp run --temp` and `dvc queue start` run stages in a copy of the project that is deleted afterwards. In
    the copy, DVC_ROOT still names the original project, so files that must outlive the run are kept in that folder.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def resolve_path(path: str | Path) -> Path:
    """Resolve a path from params against the workspace if the path exists there, otherwise against the project root.

    Untracked files and `../` paths do not exist in DVC's temporary workspaces.

    Raises:
        UserError: the path begins with ~ and the name of an unknown user.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with ~ and the name of an unknown user. Write the full path.") from None
    if path.is_absolute() or path.exists():
        return path
    return project_root() / path


def require_utf8_name(path: Path) -> None:
    """Raise a UserError for a path whose bytes are not UTF-8, because reports, MLflow and DVC could not store it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {printable(str(path))} is not UTF-8. Rename it, for example with `mv`.") from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder, and rename it to `path` only on success.

    An existing `path` is replaced. After an error or a kill, no half-written `path` exists. The next process that
    writes `path` removes what a killed process left behind.

    Raises:
        UserError: the disk is full, or `path` can't be written. Other errors from the `with` block pass unchanged.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with _refusal(path, _os_reason):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        with _refusal(path, lambda error: _why_not_written(error, partial)):
            yield partial
        with _refusal(path, _os_reason):
            _take_name(partial, path)
    finally:
        _remove(partial)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, completely or not at all."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def json_line(value: Any) -> bytes:
    """Return `value` as a line of strict JSON in UTF-8.

    If `value` contains lone surrogates, all characters that are not ASCII are escaped. Values of types that JSON lacks
    are written as text, and NaN is written as null.
    """
    try:
        return _dumped(value).encode() + b"\n"
    except UnicodeEncodeError:
        return _dumped(value, ensure_ascii=True).encode() + b"\n"


def refuse_lfs_pointer(path: Path, head: bytes | None = None) -> None:
    """Raise a UserError if a file is only a Git LFS pointer.

    Args:
        head: the file's first bytes, if known.
    """
    if head is None:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    if head.startswith(_LFS_POINTER):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository.")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 over the names and bytes of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def run_fingerprint(values: Any) -> str:
    """Hex digest of `values`, which contain everything that a result depends on, as plain JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def source_fingerprint(*places: Path) -> str:
    """Hex digest of Python files, given directly or by their folder; it shows whether code has changed."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{place.name}/{file.relative_to(place).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _dumped(value: Any, *, ensure_ascii: bool = False) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, default=str)
    return _NOT_FINITE.sub(_strict, text) if "NaN" in text or "Infinity" in text else text


def _strict(match: re.Match[str]) -> str:
    found = match.group()
    return found if found.startswith('"') else "null" if found == "NaN" else f'"{found}"'


@contextmanager
def _refusal(path: Path, reason_of: Callable[[Exception], str | None]) -> Iterator[None]:
    """Turn an error with a known reason into one message about `path`; raise other errors unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise UserError(
            f"could not write {path}: {reason}. Free space or fix the permissions of {path.parent}, then run again."
        ) from error


def heed_umask(path: Path) -> None:
    """Give a file, or all files in a folder, all permissions that the umask allows; some libraries set fewer."""
    umask = os.umask(0o077)
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        if entry.is_file() and not entry.is_symlink():
            executable = entry.stat().st_mode & 0o111
            entry.chmod((0o777 if executable else 0o666) & ~umask)


def sync(path: Path) -> None:
    """Force the bytes of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_reason(error: Exception) -> str | None:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None


def _why_not_written(error: Exception, partial: Path) -> str | None:
    """The reason for a failed write, if the disk or its permissions caused it; None for other errors."""
    if isinstance(error, OSError) and error.errno:
        place = Path(os.fsdecode(error.filename)).absolute() if error.filename else None
        about_us = place is not None and place.is_relative_to(partial.absolute())
        return _os_reason(error) if about_us or error.errno in _DISK_ERRORS else None
    # polars and safetensors raise errors of their own types, and torch.save gives no reason, so try the disk
    return _refused_by_disk(partial.parent)


def _refused_by_disk(folder: Path) -> str | None:
    """The reason why 1 MiB can't be written to a folder; None if it can be written."""
    trial = folder / f".trial-{os.getpid()}"
    try:
        trial.write_bytes(bytes(_TRIAL_BYTES))
        sync(trial)
    except OSError as error:
        return _os_reason(error)
    finally:
        _remove(trial)
    return None


def _take_name(partial: Path, path: Path) -> None:
    heed_umask(partial)
    _sync_tree(partial)
    if path.is_dir():
        # A folder can't be replaced by a rename, and deleting it in place could stop half-way.
        replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
        path.replace(replaced)
        partial.replace(path)
        _remove(replaced)
    else:
        partial.replace(path)
    sync(path.parent)


def _remove_leftovers(path: Path) -> None:
    for kind in ("partial", "replaced"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"):
            pid = leftover.name.rpartition("-")[2]
            if pid == str(os.getpid()) or not (pid.isdecimal() and psutil.pid_exists(int(pid))):
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync_tree(path: Path) -> None:
    for entry in (path, *path.rglob("*")):
        sync(entry)
