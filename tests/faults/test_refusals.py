"""What the train stage can't do is refused in a sentence and at once, in real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from glm2core.model.presets import preset_config
from tests.model.released_layout import RELEASED_KEYS
from tests.training.conftest import ROOT, small_tokenizer, start_stage, write_params, write_project, write_rows

DVC_YAML = """\
stages:
  train:
    cmd: {python} -m stages.train
    deps: [data/tokenized]
    params: [train]
    outs: [models/tuned, reports/train]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "refused"
    write_project(folder)
    return folder


def refused(folder: Path) -> str:
    """What the stage says as it fails, on one line."""
    process = start_stage(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert not (folder / "models/tuned").exists()
    return " ".join(output.split())


def test_a_checkpoint_folder_that_is_a_file(folder: Path) -> None:
    (folder / ".checkpoints").write_text("in the way")
    said = refused(folder)
    assert "cannot write checkpoints to" in said
    assert "Fix the permissions of that folder" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_checkpoint_folder_that_is_read_only(folder: Path) -> None:
    checkpoints = folder / ".checkpoints"
    checkpoints.mkdir()
    checkpoints.chmod(0o555)
    try:
        assert "cannot write checkpoints to" in refused(folder)
    finally:
        checkpoints.chmod(0o755)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(folder: Path) -> None:
    write_params(folder, {"device": "cuda"})
    assert "train.device is cuda, but torch" in refused(folder)


def test_a_tokenized_file_from_another_tokenizer(folder: Path) -> None:
    write_rows(folder / "data/tokenized/validation.parquet", "f" * 64, 8)
    assert "was made with a different tokenizer" in refused(folder)


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(folder: Path) -> None:
    """The released shape with 300 layers. It has no weight files: loading would fail otherwise."""
    base = folder / "models/base"
    base.mkdir(parents=True)
    small_tokenizer().save(base, "chatglm2")
    config = preset_config("chatglm2-6b").to_dict()
    sizes = {
        key: config[key]
        for key in (
            "padded_vocab_size",
            "hidden_size",
            "ffn_hidden_size",
            "kv_channels",
            "num_attention_heads",
            "multi_query_group_num",
            "seq_length",
        )
    }
    (base / "config.json").write_text(json.dumps({**RELEASED_KEYS, **sizes, "num_layers": 300}))
    write_params(folder, {"learning_rate": 1e-5}, {"base": "models/base"})
    said = refused(folder)
    assert "this run needs about" in said
    assert "is free on cpu. What would fit:" in said


def test_two_dvc_repro_at_once(folder: Path) -> None:
    """The second is refused and the first ends well; a third finds its work done."""
    write_params(folder, {"max_steps": 200, "save_steps": 5, "eval_steps": None})
    (folder / "dvc.yaml").write_text(DVC_YAML.format(python=sys.executable), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    dvc = Path(sys.executable).parent / "dvc"

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [dvc, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    assert start("init", "--no-scm", "-q").wait(timeout=60) == 0
    first = start("repro")
    deadline = time.monotonic() + 180
    while not list(folder.glob(".checkpoints/*/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start("repro")
    said, _ = second.communicate(timeout=180)
    assert second.returncode != 0, said
    assert "busy" in said or "lock" in said, said
    done, _ = first.communicate(timeout=300)
    assert first.returncode == 0, done
    assert "resuming from" not in done
    third = start("repro")
    said, _ = third.communicate(timeout=180)
    assert third.returncode == 0, said
    assert "Data and pipelines are up to date" in said
