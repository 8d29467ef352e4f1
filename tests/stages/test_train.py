"""The train stage from files to files."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from glm2core.model.adapters import load_tuned
from stages.runner import run_stage
from stages.train import METRICS, REPORTS, TUNED, train
from tests.stages.data_project import artifacts, run_of
from tests.training.conftest import folder_bytes, small_tokenizer, tiny_model, write_params, write_project, write_rows

KEYS = {
    "train_loss_first", "train_loss_last", "validation_loss_before", "validation_loss", "tokens_per_second", "mfu",
    "peak_memory_gib", "steps", "supervised_tokens", "tokens", "seconds", "trainable_parameters",
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after its tokenize stage, the current folder."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def run() -> int:
    return run_stage("train", train)


def columns(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in table] for name in table[0]}


def test_the_stage_writes_model_metrics_and_curves(prepared: Path) -> None:
    assert run() == 0
    metrics = json.loads(METRICS.read_text())
    assert set(metrics) == KEYS
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert columns(REPORTS / "curves.csv")["step"] == [3, 6, 9, 12]
    assert columns(REPORTS / "validation.csv")["step"] == [0, 4, 8, 12]
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json", "model.safetensors"):
        assert (TUNED / name).is_file()
    model = load_tuned(TUNED, dtype=torch.bfloat16, notice=lambda _: None)
    assert sum(p.numel() for p in model.parameters()) == metrics["trainable_parameters"]


def test_mlflow_has_the_curves_and_figures(prepared: Path) -> None:
    assert run() == 0
    tracked = run_of(prepared, "train")
    assert tracked.data.metrics["validation_loss"] == json.loads(METRICS.read_text())["validation_loss"]
    assert {"loss", "learning_rate", "grad_norm", "mfu", "tokens_per_second"} <= set(tracked.data.metrics)
    assert {"curves.csv", "validation.csv"} <= artifacts(prepared, tracked)


def test_the_same_params_and_data_give_the_same_bytes(prepared: Path) -> None:
    assert run() == 0
    first = folder_bytes(TUNED)
    shutil.rmtree(".checkpoints")
    shutil.rmtree(TUNED)
    assert run() == 0
    assert folder_bytes(TUNED) == first


@pytest.mark.parametrize("based", [False, True])
def test_quantized_training_on_the_cpu(prepared: Path, based: bool) -> None:
    tiny_model().save_pretrained("models/base")
    small_tokenizer().save(Path("models/base"), "chatglm2")
    write_params(
        prepared,
        {"method": "qlora", "quantization_bits": 4, "max_steps": 4, "learning_rate": 1e-2},
        {"base": "models/base" if based else None},
    )
    assert run() == 0
    metrics = json.loads(METRICS.read_text())
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert (TUNED / "base").is_dir() == (not based)
    load_tuned(TUNED, dtype=torch.bfloat16, notice=lambda _: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(prepared, {"device": "cuda"})
    assert run() == 1
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not TUNED.exists()


def test_rows_of_another_tokenizer_are_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(prepared / "data/tokenized/train.parquet", "f" * 64, 60)
    assert run() == 1
    assert "was made with another tokenizer" in capsys.readouterr().err


def test_a_base_without_a_tokenizer_is_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained("models/base")
    write_params(prepared, model={"base": "models/base"})
    assert run() == 1
    assert "tokenizer.model is missing" in capsys.readouterr().err


def test_positions_are_stretched_over_the_scaled_range(prepared: Path) -> None:
    scaled = {"rope": {"type": "linear", "factor": 16.0}}
    write_params(prepared, {"position_stretch": True, "max_steps": 4}, scaled)
    assert run() == 0
    stretched = (TUNED / "model.safetensors").read_bytes()
    write_params(prepared, {"max_steps": 4}, scaled)
    assert run() == 0
    assert (TUNED / "model.safetensors").read_bytes() != stretched
