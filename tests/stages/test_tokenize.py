"""The tokenize stage as people meet it, after convert."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from glm2core.text.dataset import TokenizedDataset
from glm2core.text.tokenizer import SpTokenizer
from stages.convert import convert
from stages.tokenize import tokenize
from tests.stages.data_project import ROWS, artifacts, run_in, run_of, write_project

ROOT = Path(__file__).resolve().parents[2]


def test_outs_words_exit_code_and_mlflow(tmp_path):
    write_project(tmp_path, ROWS)
    assert run_in(tmp_path, "convert", convert) == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "stages.tokenize"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "prompt template: chatglm2 (no base)" in result.stdout

    tokenizer = SpTokenizer.load(tmp_path / "data/tokenized/tokenizer")
    files = [tmp_path / f"data/tokenized/{split}.parquet" for split in ("train", "validation", "test")]
    rows = [len(TokenizedDataset.load(file, tokenizer.sha256)) for file in files]
    metrics = json.loads((tmp_path / "metrics/tokenize.json").read_text())
    assert rows == [metrics["rows_train"], metrics["rows_validation"], metrics["rows_test"]]
    assert sum(rows) == 60
    assert metrics["responses_cut"] == metrics["rows_dropped"] == 0
    reports = {path.name for path in (tmp_path / "reports/tokenize").iterdir()}
    assert reports == {"lengths.csv", "by_source.csv", "cuts.csv", "dropped.csv", "examples.md", "rows.html"}

    run = run_of(tmp_path, "tokenize")
    assert run.data.metrics["rows_train"] == rows[0]
    assert len(run.inputs.dataset_inputs) == 3
    assert reports <= artifacts(tmp_path, run)


def test_errors_are_sentences_and_users_texts_stay_out_of_mlflow(tmp_path, capsys):
    write_project(tmp_path, ROWS, log_examples="false")
    assert run_in(tmp_path, "tokenize", tokenize) == 1
    assert "tokenize: data/converted/train.parquet is missing. Run the convert stage" in capsys.readouterr().err

    assert run_in(tmp_path, "convert", convert) == run_in(tmp_path, "tokenize", tokenize) == 0
    kept = artifacts(tmp_path, run_of(tmp_path, "tokenize"))
    assert "lengths.csv" in kept
    assert not {"examples.md", "rows.html"} & kept

    shutil.rmtree(tmp_path / "data/tokenized")
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("model: {}", "model: {base: models/mine}"))
    (tmp_path / "models/mine").mkdir(parents=True)
    assert run_in(tmp_path, "tokenize", tokenize) == 1
    assert "models/mine has no tokenizer.model" in capsys.readouterr().err
    assert not (tmp_path / "data/tokenized").exists()


def test_the_stages_need_no_torch_and_import_polars_late():
    """Imports are most of a short stage's time, and wrong params need none of them."""
    modules = "glm2core.data.reports, glm2core.data.sources"
    code = f"""
import sys, stages.convert, stages.tokenize, stages.train, stages.evaluate
early = {{'torch', 'transformers', 'polars'}} & set(sys.modules)
import {modules}
assert 'polars' in sys.modules and 'torch' not in sys.modules
print(early)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
