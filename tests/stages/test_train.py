"""The train stage from files to files."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from glm2core.files import sha256_file
from glm2core.model.adapters import load_tuned
from glm2core.params import read_tuning_record
from stages.runner import run_stage
from stages.train import METRICS, REPORTS, TUNED, train
from tests.stages.data_project import artifacts, run_of
from tests.training.conftest import folder_bytes, small_tokenizer, tiny_model, write_params, write_project, write_rows

KEYS = {
    "train_loss_first",
    "train_loss_last",
    "validation_loss_before",
    "validation_loss",
    "tokens_per_second",
    "mfu",
    "recomputed_blocks",
    "peak_memory_gib",
    "steps",
    "supervised_tokens",
    "tokens",
    "seconds",
    "validation_seconds",
    "trainable_parameters",
    "padding_fraction",
    "mix",
    "settled",
}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after its tokenize stage, the current folder."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def run() -> int:
    return run_stage("train", train)


def make_base(advice: str = "") -> None:
    tiny_model().save_pretrained("models/base")
    small_tokenizer().save(Path("models/base"), "chatglm2")
    if advice:
        Path("models/base/tuning.yaml").write_text(advice, encoding="utf-8")


def columns(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in table] for name in table[0]}


def test_the_stage_writes_model_metrics_and_curves(prepared: Path) -> None:
    assert run() == 0
    metrics = json.loads(METRICS.read_text())
    assert set(metrics) == KEYS
    assert metrics["validation_loss"] < metrics["validation_loss_before"]
    assert metrics["validation_seconds"] > 0
    assert columns(REPORTS / "curves.csv")["step"] == [3, 6, 9, 12]
    assert columns(REPORTS / "validation.csv")["step"] == [0, 4, 8, 12]
    assert metrics["mix"] == {
        "rows.json": {"tokens": metrics["tokens"], "supervised_tokens": metrics["supervised_tokens"]}
    }
    assert (REPORTS / "validation_by_source.csv").read_text().count(",rows.json,") == 4
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
    make_base()
    write_params(
        prepared, {"method": "qlora", "max_steps": 4, "learning_rate": 1e-2}, {"base": "models/base" if based else None}
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
    assert "was made with a different tokenizer" in capsys.readouterr().err


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


ADVICE = "{model: {rope: {type: linear, factor: 4}}, train: {max_steps: 5, optimizer: muon, learning_rate: 2e-3}}"


def test_auto_takes_the_bases_advice_and_says_so(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base(ADVICE)
    write_params(prepared, dict.fromkeys(("max_steps", "learning_rate"), "auto"), {"base": "models/base"})
    assert run() == 0
    said = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert ["train.optimizer", "muon", "the base's tuning.yaml"] in said
    assert ["train.batch_tokens", "192", "params.yaml"] in said
    assert ["train.schedule", "cosine", "default"] in said

    metrics = json.loads(METRICS.read_text())
    assert metrics["steps"] == metrics["settled"]["train.max_steps"] == 5
    assert metrics["settled"]["train.learning_rate"] == 2e-3
    assert metrics["base_tuning_sha256"] == sha256_file(Path("models/base/tuning.yaml"))
    tracked = run_of(prepared, "train").data.params
    assert (tracked["train.optimizer"], tracked["train.max_steps"], tracked["model.rope.type"]) == (
        "muon",
        "5",
        "linear",
    )
    record = read_tuning_record(TUNED)
    assert record is not None and (record.model.rope.factor, record.train.optimizer) == (4, "muon")
    first = (TUNED / "model.safetensors").read_bytes()

    # The same values, written out: the same weights.
    written = {"max_steps": 5, "learning_rate": 2e-3, "optimizer": "muon"}
    write_params(prepared, written, {"base": "models/base", "rope": {"type": "linear", "factor": 4.0}})
    assert run() == 0
    assert (TUNED / "model.safetensors").read_bytes() == first


def test_wrong_advice_stops_the_stage(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base("train: {optimiser: muon}")
    write_params(prepared, model={"base": "models/base"})
    assert run() == 1
    said = capsys.readouterr().err
    assert "tuning.yaml: train.optimiser is not a key" in said and "did you mean 'train.optimizer'" in said
    assert not TUNED.exists()


def write_training_rows(project: Path, sources: list[str]) -> None:
    write_rows(project / "data/tokenized/train.parquet", small_tokenizer().sha256, len(sources), sources=sources)


def test_epochs_are_counted_in_the_rows_that_are_trained_on(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base()
    write_rows(
        prepared / "data/tokenized/train.parquet",
        small_tokenizer().sha256,
        60,
        sources=["rows.json"] * 20 + ["convert.sources[1]"] * 40,
    )
    epoch = {"max_steps": "auto", "epochs": 1.0, "eval_steps": None}
    write_params(prepared, epoch, {"base": "models/base"})
    assert run() == 0
    said = capsys.readouterr().out
    assert "train.generated_rows 0: 40 of 60 training rows are left out" in said
    own = json.loads(METRICS.read_text())["steps"]
    assert f"train.epochs 1: {own} steps over 20 rows" in said
    write_params(
        prepared,
        {"max_steps": "auto", "epochs": 1.0, "eval_steps": None, "generated_rows": 1.0},
        {"base": "models/base"},
    )
    assert run() == 0
    assert json.loads(METRICS.read_text())["steps"] > 2 * own


def test_positions_that_the_pipeline_changes_keep_the_generated_rows(prepared: Path) -> None:
    make_base()
    write_rows(
        prepared / "data/tokenized/train.parquet", small_tokenizer().sha256, 60, sources=["convert.sources[0]"] * 60
    )
    write_params(prepared, {"max_steps": 2}, {"base": "models/base", "rope": {"type": "linear", "factor": 2.0}})
    assert run() == 0


def test_only_generated_rows_and_unchanged_positions_are_a_sentence(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base()
    write_rows(
        prepared / "data/tokenized/train.parquet", small_tokenizer().sha256, 60, sources=["convert.sources[0]"] * 60
    )
    write_params(prepared, model={"base": "models/base"})
    assert run() == 1
    assert "all 60 training rows are generated," in capsys.readouterr().err
