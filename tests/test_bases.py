"""The embedded bases: what their cards say, and the params that they are made with."""

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

BASES = load_script("base").BASES


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_whole_and_its_params_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = ROOT / "models" / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    counted = sum(tensor.numel() for tensor in weights.values())
    assert f"{counted:,} parameters" in (folder / "README.md").read_text(encoding="utf-8")
    assert len(SpTokenizer.load(folder)) <= config["padded_vocab_size"]
    for run in BASES[name]:
        params = load_params(Path("models") / name / run.params)
        found = settle(params, read_base(params.model.base, params.model.preset), "cpu")
        assert found.model.rope.type == "default" and found.train.max_steps is not None
        assert (folder / "README.md").read_text(encoding="utf-8").count(f"({run.params})") == 1


def test_kinds_is_tuned_as_its_checkpoint_turns_positions_and_on_few_long_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params(Path("params.yaml"))
    model = params.model.model_copy(update={"base": "models/kinds"})
    found = settle(params.model_copy(update={"model": model}), read_base("models/kinds", model.preset), "cpu")
    assert (found.model.rope.type, found.train.position_stretch) == (None, False)  # as the checkpoint has it
    assert (found.train.optimizer, found.train.generated_rows) == ("muon", 0.05)
    assert max(found.evaluate.retrieval.lengths) == 2048


def test_kinds_finds_uuids_and_several_numbers_in_512_tokens(tmp_path: Path) -> None:
    tasks = ["niah_multikey_3", "niah_multiquery", "lines"]
    command = [sys.executable, "-m", "glm2core", "retrieval", "models/kinds", str(tmp_path / "out"), "--contexts", "1"]
    subprocess.run([*command, "--lengths", "512", "--tasks", *tasks], cwd=ROOT, check=True, capture_output=True)
    found = pl.read_csv(tmp_path / "out/retrieval_by_length.csv")
    assert set(found["task"]) == set(tasks)
    assert found["accuracy"].min() > 0.8  # type: ignore[operator]
