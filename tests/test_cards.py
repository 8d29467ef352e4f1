"""One worker, one card: DVC's own queue, with names of cards alone."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/cards.py"
LASTS = 8  # seconds of an experiment: both workers are up before the first is done
PIPELINE = """
stages:
  noted:
    cmd: python note.py
    params: [number]
    deps: [note.py]
    outs: [out.txt]
"""
NOTE = """
import os, time
card = os.environ["CUDA_VISIBLE_DEVICES"]
with open({log!r}, "a") as log:
    log.write(f"start {{card}}\\n")
time.sleep({lasts})
with open({log!r}, "a") as log:
    log.write(f"end {{card}}\\n")
open("out.txt", "w").write(card)
"""


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_STUDIO_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.email", "nobody@example.org")
    run(folder, "git", "config", "user.name", "nobody")
    run(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("number: 0\n")
    (folder / "note.py").write_text(NOTE.format(log=str(tmp_path / "log.txt"), lasts=LASTS))
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "begin")
    return folder


@pytest.mark.slow
def test_each_worker_has_a_card_of_its_own(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "exp", "run", "--queue", "-q", "-S", "number=1,2,3,4")
    said = run(project, sys.executable, str(SCRIPT), "GPU-a", "GPU-b")
    assert said.splitlines() == ["cards: started a worker on card GPU-a", "cards: started a worker on card GPU-b"]
    log, end = tmp_path / "log.txt", time.monotonic() + 200
    while (lines := log.read_text().splitlines() if log.exists() else []).count("end GPU-a") + lines.count(
        "end GPU-b"
    ) < 4:
        assert time.monotonic() < end, lines
        time.sleep(1)
    starts = Counter(line.split()[1] for line in lines if line.startswith("start"))
    assert set(starts) == {"GPU-a", "GPU-b"} and sum(starts.values()) == 4
    for card in starts:  # never two on one card
        assert [line.split()[0] for line in lines if line.endswith(card)] == ["start", "end"] * starts[card]


def test_a_card_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "0", "1", "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cards: each card takes only one worker, but these were named: 0 1 0\n"
