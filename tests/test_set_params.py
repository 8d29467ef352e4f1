"""scripts/set_params.py, by which .ci/run shortens the pipeline: it never leaves the long one in place silently."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glm2core.params import load_params

ROOT = Path(__file__).resolve().parents[1]


def set_params(folder: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "set_params.py"), *changes]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_keys_are_changed_and_comments_stay(folder: Path) -> None:
    done = set_params(folder, "train.max_steps=20", "evaluate.retrieval.lengths=[512, 1024]", "train.epochs=null")
    assert done.returncode == 0, done.stderr
    params = load_params(folder / "params.yaml")
    assert (params.train.max_steps, params.train.epochs) == (20, None)
    assert params.evaluate.retrieval.lengths == [512, 1024]
    before, after = ((place / "params.yaml").read_text(encoding="utf-8") for place in (ROOT, folder))
    assert after.count("#") == before.count("#")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.max_stps=20", "no such key"),
        ("train.max_steps", "no such key"),
        ("train.max_steps.more=20", "no such key"),
        ("train.max_steps=auto", "already has this value"),
        ("train.max_steps=many", "train.max_steps must be a whole number"),
        ("train.quantization_bits=8", "method full needs quantization_bits"),
    ],
)
def test_what_changes_nothing_or_is_wrong_fails(folder: Path, change: str, said: str) -> None:
    before = (folder / "params.yaml").read_bytes()
    done = set_params(folder, "train.seed=5", change)
    assert done.returncode == 1 and said in done.stderr
    assert (folder / "params.yaml").read_bytes() == before


def test_no_change_at_all_fails(folder: Path) -> None:
    assert set_params(folder).returncode == 1
