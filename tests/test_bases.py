"""The embedded base: what its card says, and the params that it is made with."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from glm2core.params import load_params, read_base, settle
from glm2core.text.tokenizer import SpTokenizer
from tests.workspace import ROOT, load_script

RUNS = load_script("base").RUNS
BASE = ROOT / "models/base"


def test_the_base_is_whole_and_the_params_of_its_runs_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    weights = load_file(BASE / "model.safetensors")
    counted = sum(tensor.numel() for tensor in weights.values())
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert f"{counted:,} parameters" in card
    assert len(SpTokenizer.load(BASE)) <= config["padded_vocab_size"]
    for run in RUNS:
        params = load_params(Path("models/base") / run.params)
        found = settle(params, read_base(params.model.base, params.model.preset), "cpu")
        assert found.model.rope.type == "default" and found.train.max_steps is not None
        assert card.count(f"({run.params})") == 1


def test_the_base_finds_uuids_and_several_numbers_in_512_tokens(tmp_path: Path) -> None:
    tasks = ["niah_multikey_3", "niah_multiquery", "lines"]
    command = [sys.executable, "-m", "glm2core", "retrieval", "models/base", str(tmp_path / "out"), "--contexts", "1"]
    subprocess.run([*command, "--lengths", "512", "--tasks", *tasks], cwd=ROOT, check=True, capture_output=True)
    found = pl.read_csv(tmp_path / "out/retrieval_by_length.csv")
    assert set(found["task"]) == set(tasks)
    assert found["accuracy"].min() > 0.8  # type: ignore[operator]
