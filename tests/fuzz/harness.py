"""What the fuzzers share: each runs in a process of its own, so that a crash, a hang or a peak of memory is seen."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glm2core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\u2028\ud800-\udfff]")


def run_fuzzer(fuzzer: str, nth: int, count: int, folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Run `python -m tests.fuzz.FUZZER SEED COUNT FOLDER`; returns the tally that it printed.

    Args:
        nth: of the fuzzer's seeds; `--seed` is where they start, in thousands.
        folder: where the input lies at which it failed.
    """
    seed = request.config.getoption("--seed") * 1000 + nth
    command = [sys.executable, "-m", f"tests.fuzz.{fuzzer}", str(seed), str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    left = sorted(path.name for path in [*folder.iterdir(), *folder.glob("tried/*")])
    assert done.returncode == 0, f"{' '.join(command[1:])}: {left}\n{done.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{fuzzer}, seed {seed}: {found}")
    return found


def refused(error: UserError, longest: int) -> str:
    """`refused`, where the sentence is short and can't change a terminal."""
    said = str(error)
    assert len(said) < longest, f"a message of {len(said)} characters"
    assert not _CONTROL.search(said), f"a control character in {said!r}"
    return "refused"


@contextmanager
def ends_within(seconds: int) -> Iterator[None]:
    """Raise what names a hang in Python's code after so many seconds."""
    signal.signal(signal.SIGALRM, lambda *_: _hangs(seconds))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _hangs(seconds: int) -> None:
    raise TimeoutError(f"no end within {seconds} s")


def peak_mib() -> int:
    """The most memory that this process has held."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) // 1024
