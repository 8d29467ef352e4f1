"""What a person can mend is a sentence, from one place; a bug keeps its traceback. In real processes."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm2core.errors import masked
from glm2core.sentences import sentence_of
from tests.stages.data_project import ROWS, write_project

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534


def raised(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    "action",
    [
        lambda: bytearray(1 << 60),
        lambda: np.empty(1 << 60, dtype=np.uint8),
        lambda: torch.empty(1 << 55),
        lambda: Path("x" * 5000).stat(),
        lambda: Path("/").read_bytes(),
        lambda: (Path("/proc/version") / "below").read_bytes(),
    ],
)
def test_errors_of_the_machine_are_sentences(action: Callable[[], object]) -> None:
    sentence = sentence_of(raised(action))
    assert sentence is not None and sentence.endswith(".") and "\n" not in sentence and len(sentence) < 600


@pytest.mark.parametrize(
    "action", [lambda: {}["key"], lambda: torch.ones(2) @ torch.ones(3), lambda: Path("no such file").read_bytes()]
)
def test_bugs_are_none(action: Callable[[], object]) -> None:
    assert sentence_of(raised(action)) is None


@pytest.mark.parametrize(
    ("uri", "text", "shown"),
    [
        (
            "http://ann:pa%2Fss@host:5000",
            "API request to http://ann:pa%2Fss@host:5000/api failed",
            "to http://***@host",
        ),
        ("http://ann:pa%2Fss@host:5000", "the password 'pa/ss' was refused", "the password '***' was refused"),
        (
            "http://ann:pa#word@host",
            "Failed to parse: http://ann:pa, invalid port 'word@host'",
            "invalid port '***@host'",
        ),
        ("", "postgresql://u:p@db/x", "postgresql://***@db/x"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
    ],
)
def test_no_sentence_has_a_password(uri: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert shown in masked(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project that anybody may enter."""
    folder = tmp_path / "project"
    write_project(folder, ROWS)
    for place in (*tmp_path.parents, tmp_path):
        if place.name.startswith("pytest-"):
            place.chmod(0o755)
    return folder


def run(folder: Path, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, **options
    )


def as_somebody_else() -> dict[str, object]:
    """Options of `run`: as another user where this is root, who may do all; else as this one."""
    if os.geteuid() != 0:
        return {}
    options: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import polars"], cwd="/", check=True, capture_output=True, **options)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this interpreter lies where other users can't run it")
    return options


def unreadable(path: Path) -> None:
    path.chmod(0o600 if os.geteuid() == 0 else 0)


def not_writable(path: Path) -> None:
    path.chmod(0o755 if os.geteuid() == 0 else 0o555)


def a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("data/raw/rows.json", unreadable, "Permission denied"),
        ("params.yaml", unreadable, "Permission denied"),
        ("data", not_writable, "Permission denied"),
        ("params.yaml", a_folder_in_its_place, "is not a file"),
        ("data/raw/rows.json", a_folder_in_its_place, "is a folder"),
    ],
)
def test_what_lies_in_a_stages_way(folder: Path, name: str, harm: Callable[[Path], None], words: str) -> None:
    harm(folder / name)
    done = run(folder, "stages.convert", **(as_somebody_else() if "denied" in words else {}))
    assert done.returncode == 1, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "data/converted").exists()


def test_a_model_of_another_user_and_a_folder_in_a_files_place(folder: Path) -> None:
    base = folder / "models/base"
    shutil.copytree(ROOT / "models/base", base)
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    command = ("glm2core", "predict", "models/base", "rows.jsonl", "-o", "out/answers.jsonl")
    unreadable(base / "config.json")
    (folder / "out").mkdir()
    done = run(folder, *command, **as_somebody_else())
    assert done.returncode == 1 and "Permission denied" in done.stderr and "Traceback" not in done.stderr
    a_folder_in_its_place(base / "config.json")
    done = run(folder, *command)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr


def test_a_stage_without_memory(folder: Path) -> None:
    """A row of 12 MB under a limit that leaves room to start, and no more."""
    rows = [*ROWS, {"instruction": "long " * 2_400_000, "input": "", "output": "answer"}]
    (folder / "data/raw/rows.json").write_text(json.dumps(rows))
    assert run(folder, "stages.convert").returncode == 0

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size))

    without = [run(folder, "stages.convert", preexec_fn=limit(size << 20)) for size in (180, 260, 340)]
    refused = [done for done in without if done.returncode]
    assert refused, "all of these are enough"
    assert any("there is not enough memory" in done.stderr for done in refused), [done.stderr for done in refused]


def test_files_have_the_rights_of_the_umask(folder: Path) -> None:
    def umask() -> None:
        os.umask(0o027)

    for stage in ("convert", "tokenize"):
        done = run(folder, f"stages.{stage}", preexec_fn=umask)
        assert done.returncode == 0, done.stderr
    files = [file for out in ("data/converted", "data/tokenized", "reports") for file in (folder / out).rglob("*")]
    rights = {stat.S_IMODE(file.stat().st_mode) for file in files if file.is_file()}
    assert rights == {0o640}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.is_dir()} == {0o750}
