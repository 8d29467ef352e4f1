"""`python -m glm2core ui`: MLflow's pages answer at the address that is printed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glm2core.cli.main import main
from glm2core.params import load_params
from glm2core.tracking import stage_run
from tests.workspace import ROOT, answers


def test_the_pages_answer_at_the_printed_address(project: Path) -> None:
    with stage_run("convert", load_params()) as run:
        run.headline({"rows": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "glm2core", "ui"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        printed = process.stdout.readline() + process.stdout.readline()
        address = re.search(r"(http://127.0.0.1:\d+/)#/experiments/1/runs\?workflowType=machine_learning", printed)
        assert address is not None, printed
        deadline = time.monotonic() + 120
        while not answers(address[1]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def test_a_server_of_ones_own_has_pages_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["ui"]) == 1
    assert "names a server" in capsys.readouterr().err
