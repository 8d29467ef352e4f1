"""Keeps the last model if a run fails, although DVC removes a stage's outputs before the stage starts."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glm2core.files import project_root


def put_back(stage: str, out: Path) -> None:
    """Use DVC's cache to restore a stage's output, which DVC removed before the stage started.

    The version in dvc.lock is restored. This version stays until the stage succeeds and replaces it as a whole, so it
    also stays after an error, Ctrl-C or a kill. Nothing is done outside DVC, in DVC's temporary workspaces, or if the
    output is not in the cache.

    Args:
        stage: the stage's name in dvc.yaml.
        out: the path of one of the stage's outputs.
    """
    in_workspace = os.environ.get("DVC_STAGE") == stage and Path.cwd().resolve() == project_root()
    if not in_workspace or out.exists():
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with _signals_wait(), Repo() as repo:
        (entry,) = [found for found in repo.stage.load_one(name=stage).outs if found.def_path == out.as_posix()]
        try:
            if entry.hash_info and not entry.changed_cache():
                entry.checkout()
                print(f"{out} keeps the last run's result until this run succeeds", flush=True)
        except (DvcException, OSError):  # such as a full disk; running the stage matters more
            shutil.rmtree(out, ignore_errors=True)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the body has finished, so that nothing stays half-copied."""
    block = getattr(signal, "pthread_sigmask", None)  # not on Windows
    if block is None:
        yield
        return
    before = block(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        block(signal.SIG_SETMASK, before)
