"""Set up .venv with the packages in requirements.lock; with `dev`, also install what tests and lint need.

    python scripts/setup.py [dev] [--torch cpu | cuda]

This script needs only the standard library, and `installer.py` beside it installs the packages. As its last step, a
set-up writes one stamp per lock file, with the lock's hash. An interrupted set-up leaves no stamp, so the next set-up
starts over from nothing, because a package may be half-installed. If two set-ups run in one folder, the second waits.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from installer import BACKENDS, install

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
GUARD = ROOT / ".venv.lock"  # outside .venv, which is emptied
OLDEST = (3, 11)
# Lock -> its stamp; each lock needs those before it.
STAMPS = {ROOT / "requirements.lock": VENV / ".ready", ROOT / "requirements-dev.lock": VENV / ".ready-dev"}


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        print(
            f"set-up: Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, but this is {sys.version.split()[0]}. "
            "Choose a different one: make setup PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["dev"], help="also install what tests and lint need")
    parser.add_argument("--torch", choices=list(BACKENDS), help="torch's build (default: the package index's build)")
    given = parser.parse_args(arguments)
    locks = list(STAMPS)[: 2 if given.part else 1]
    if all(_is_ready(lock, given.torch) for lock in locks):
        return 0
    try:
        _refuse_what_is_no_folder()
        with _alone() as guard:
            for lock in locks:
                if not _is_ready(lock, given.torch):  # another process may have done it meanwhile
                    _install(lock, given.torch, guard)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"set-up: failed ({error}). The message above says why; run the same command again.", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next call starts over.", file=sys.stderr)
        return 130
    print("set-up: ready", flush=True)
    return 0


def _is_ready(lock: Path, torch: str | None) -> bool:
    stamp = STAMPS[lock]
    if not stamp.is_file() or not _python().exists():
        return False
    wanted, _, build = stamp.read_text(encoding="utf-8").rpartition("torch ")
    return wanted == _wanted(lock) and (torch is None or build.strip() == torch)


def _wanted(lock: Path) -> str:
    """Return an up-to-date environment's stamp, made from this lock, earlier locks, the interpreter and the place."""
    before = list(STAMPS)[: list(STAMPS).index(lock) + 1]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in before]
    return f"{' '.join(hashes)} python{sysconfig.get_python_version()} {VENV}\n"


def _refuse_what_is_no_folder() -> None:
    if VENV.is_symlink():
        raise ValueError(
            f"{VENV} is a link to {VENV.readlink()}, which the set-up would empty. Remove the link (rm .venv), or set "
            "that environment up from its own project."
        )
    if VENV.exists() and not VENV.is_dir():
        raise ValueError(f"{VENV} is a file where a folder should be. Move it away.")


@contextmanager
def _alone() -> Iterator[int | None]:
    """Hold the folder's lock, which ends with the process. None is yielded on systems without such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    with GUARD.open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another set-up is running in this folder; waiting for it", flush=True)
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield guard.fileno()


def _install(lock: Path, torch: str | None, guard: int | None) -> None:
    """Install a lock's packages, and write its stamp."""
    print(f"set-up: installing the packages of {lock.name} into .venv (once)", flush=True)
    if lock == next(iter(STAMPS)):
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=os.name != "nt").create(VENV)
    # The installer holds the guard as well: it may outlive this process
    install(_python(), lock, torch=torch, pass_fds=() if guard is None else (guard,))
    STAMPS[lock].write_text(f"{_wanted(lock)}torch {torch or 'of the index'}\n", encoding="utf-8")


def _python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
