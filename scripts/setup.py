"""Set up .venv from requirements.lock; standard library only.

A finished set-up is known by a stamp that holds the lock's hash and is written last. An
interrupted one leaves no stamp and is begun again from nothing, since pip may have been stopped
in the middle of a package.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".ready"
OLDEST = (3, 11)


def main() -> int:
    if sys.version_info < OLDEST:
        print(
            f"set-up: Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version.split()[0]}. "
            "Name another one: make setup PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    wanted = _wanted()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted and _python().exists():
        return 0
    print("set-up: installing the packages of requirements.lock into .venv (some minutes, once)", flush=True)
    try:
        _install()
    except subprocess.CalledProcessError as error:
        print(f"set-up: failed ({error}). The message above says why; run the same command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next call begins again.", file=sys.stderr)
        return 130
    STAMP.write_text(wanted, encoding="utf-8")
    print("set-up: ready", flush=True)
    return 0


def _wanted() -> str:
    """What the stamp of an up-to-date environment says: the lock, the interpreter, the place."""
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    return f"{lock} python{sysconfig.get_python_version()} {VENV}\n"


def _install() -> None:
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=os.name != "nt").create(VENV)
    pip = [str(_python()), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # torch first: its build (CPU or CUDA) must be settled before packages that only ask for some torch
    torch = next(line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    for what in ([torch], ["--requirement", str(LOCK)]):
        subprocess.run([*pip, *what], check=True)


def _python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


if __name__ == "__main__":
    sys.exit(main())
