"""Writes and reads checkpoints that survive a kill at any moment.

Checkpoints are written atomically, verified and locked. The name of their folder is a fingerprint of everything that
they depend on:

    <project root>/.checkpoints/<fingerprint>/
        lock                 held by the process that trains this run
        step-00000100/       a complete checkpoint: its files and manifest.json with their SHA-256
        partial              a checkpoint being written; never read

If checkpoints were outs, DVC would delete or wrongly reuse them, so this folder is not tracked. If anything changes
that the result depends on, the fingerprint changes as well, and training starts from the beginning.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.files import heed_umask, sha256_file, sync, write_json

_MANIFEST = "manifest.json"
_FINISHED = "finished.json"
# On a full disk torch.save raises RuntimeError, and safetensors its own error.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class CheckpointFolder:
    """The checkpoints of one training run.

    Args:
        folder: `<project root>/.checkpoints/<fingerprint>`.
        keep: number of newest checkpoints to keep; the best checkpoint is kept as well.
        notice: called with a message when a checkpoint is damaged or can't be saved.
    """

    def __init__(self, folder: Path, *, keep: int, notice: Notice) -> None:
        self.folder = folder
        self._keep = keep
        self._notice = notice

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process, because a killed `dvc` may leave its training process alive.

        Raises:
            UserError: another process holds the lock, or the folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is training this run (it holds {self.folder / 'lock'}). "
                "Wait for that process to end, or stop it, and run again."
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {self.folder}: {error.strerror or error}. "
                "Fix the permissions of that folder, or free up disk space, and run again."
            ) from error
        try:
            self._remove(self._partial)
            yield
        finally:
            lock.release()

    def newest(self) -> Path | None:
        """The newest intact checkpoint; damaged ones are reported and skipped."""
        for path in reversed(self._checkpoints()):
            broken = _first_broken_file(path)
            if broken is None:
                return path
            self._notice(f"checkpoint {path} is damaged ({broken}), so the checkpoint before it is used")
        return None

    def save(self, step: int, write: Callable[[Path], None], *, best_step: int | None = None) -> bool:
        """Write a checkpoint atomically, into a temporary folder that is then renamed; then delete the oldest ones.

        If writing fails (e.g. on a full disk), the failure is reported, the previous checkpoint is kept, and training
        continues.

        Returns:
            Whether the checkpoint was saved.
        """
        try:
            self._remove(self._partial)
            self._partial.mkdir()
            write(self._partial)
            heed_umask(self._partial)
            _seal(self._partial)
            target = self.folder / f"step-{step:08d}"
            self._remove(target)
            self._partial.rename(target)
            sync(self.folder)
        except WRITE_ERRORS as error:
            self._remove(self._partial)
            before = self._checkpoints()
            kept = f"the last one is {before[-1].name}" if before else "there is none before it"
            self._notice(f"could not save the checkpoint of step {step} ({error}); {kept}. Training continues.")
            return False
        self._rotate(best_step)
        return True

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint, if it is still kept."""
        return self.folder / f"step-{step:08d}"

    def finish(self) -> None:
        """Mark the run as finished, so that its checkpoints are deleted when the next run starts."""
        write_json(self.folder / _FINISHED, {})

    def remove_other_finished(self) -> None:
        """Delete the checkpoints of other finished runs. Unfinished runs can still be resumed."""
        for mark in self.folder.parent.glob(f"*/{_FINISHED}"):
            if mark.parent != self.folder:
                self._remove(mark.parent)

    @property
    def _partial(self) -> Path:
        return self.folder / "partial"

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _rotate(self, best_step: int | None) -> None:
        best = self.path(best_step) if best_step is not None else None
        for path in self._checkpoints()[: -self._keep]:
            if path != best:
                self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Write the manifest of a folder's files, and flush everything to disk."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    manifest = {file.name: sha256_file(file) for file in files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for file in [*files, folder / _MANIFEST, folder]:
        sync(file)


def _first_broken_file(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        changed = [name for name, sha in manifest.items() if sha256_file(folder / name) != sha]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{changed[0]} has changed" if changed else None
