"""The evaluate stage from files to files."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from glm2core.data.converted import SCHEMA as CONVERTED_SCHEMA
from glm2core.model.rope import plain_rope
from glm2core.params import PARAMS_FILE
from stages.evaluate import CONVERTED, METRICS, MODEL, REPORTS, TEST, evaluate
from stages.runner import run_stage
from tests.evaluation.conftest import random_model, small_tokenizer, tiny_config, write_random_rows

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "generation": {"rows": 6, "batch_size": 4, "max_new_tokens": 5},
    "retrieval": {
        "tasks": ["lines", "passkey"],
        "lengths": [600, 1200],
        "base_lengths": [600],
        "contexts": 1,
        "questions": 4,
        "depths": 2,
        "max_new_tokens": 4,
        "files": ["2_lines.jsonl"],
    },
}
RECORD = "line a-b: REGISTER_CONTENT is <5>\nline c-d: REGISTER_CONTENT is <6>\n\n"
LONGEVAL = {"prompt": f"{RECORD}Now the record is over. c-d? ", "expected_number": 6, "random_idx": ["c-d", 1]}


@pytest.fixture
def inputs(project: Path) -> Path:
    """A project after its train stage."""
    tokenizer = small_tokenizer()
    random_model(tiny_config(tokenizer)).save_pretrained(MODEL)
    tokenizer.save(MODEL, "chatglm2")
    for path in (TEST, CONVERTED):
        path.parent.mkdir(parents=True)
    write_random_rows(TEST, tokenizer)
    rows = [
        {
            "id": f"row{index}",
            "source": "first.json" if index < 6 else "second.json",
            "messages": [{"role": "user", "content": "北京" if index < 8 else "Paris"}],
        }
        for index in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CONVERTED_SCHEMA), CONVERTED)
    Path("2_lines.jsonl").write_text(json.dumps(LONGEVAL))
    random_model(tiny_config(tokenizer, rope_parameters=plain_rope())).save_pretrained("base")
    set_params(evaluate=SETTINGS, model={"base": "base"}, tracking={"log_examples": False})
    return project


def set_params(**sections: object) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(PARAMS_FILE.read_text(encoding="utf-8"))
    with PARAMS_FILE.open("w", encoding="utf-8") as file:
        yaml.dump(values | sections, file)


def test_stage_writes_all_it_promises_and_the_same_again(inputs: Path) -> None:
    assert run_stage("evaluate", evaluate) == 0
    metrics = json.loads(METRICS.read_text())
    assert set(metrics) == {
        "test_loss",
        "test_perplexity",
        "test_tokens",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "bleu_4",
        "retrieval_lines_600",
        "retrieval_lines_1200",
        "retrieval_passkey_600",
        "retrieval_passkey_1200",
        "longeval_2_lines",
        "retrieval_accuracy",
        "effective_context_length",
        "peak_memory_gib",
        "seconds",
        "base_retrieval_lines_600",
        "base_retrieval_passkey_600",
        "short_context_change",
        "settled",
    }
    predictions = [json.loads(line) for line in (REPORTS / "predictions.jsonl").read_text().splitlines()]
    assert [set(row) for row in predictions] == [{"id", "source", "prompt", "reference", "answer"}] * 6
    retrieval = [json.loads(line) for line in (REPORTS / "retrieval_predictions.jsonl").read_text().splitlines()]
    assert Counter(row["model"] for row in retrieval) == {"tuned": 2 * 4 + 2 * 2 + 1, "base": 4 + 2}
    with (REPORTS / "retrieval_by_length.csv").open() as file:
        lengths = list(csv.DictReader(file))
    assert [(row["model"], row["task"], row["cases"]) for row in lengths] == [
        ("base", "lines", "4"),
        ("base", "passkey", "2"),
        ("tuned", "lines", "4"),
        ("tuned", "lines", "4"),
        ("tuned", "longeval_2_lines", "1"),
        ("tuned", "passkey", "2"),
        ("tuned", "passkey", "2"),
    ]
    with (REPORTS / "answers_by_source.csv").open() as file:
        assert [int(row["rows"]) for row in csv.DictReader(file)] == [6, 3, 3]
    scores = polars.read_csv(REPORTS / "scores_by_source.csv")
    keys = [tuple(row) for row in scores.select("source", "kind", "language", "rows").iter_rows()]
    assert keys == [
        ("all", "all", "all", 6),
        ("first.json", "all", "all", 3),
        ("second.json", "all", "all", 3),
        ("all", "question", "all", 6),
        ("all", "all", "latin", 2),
        ("all", "all", "zh", 4),
        ("first.json", "question", "zh", 3),
        ("second.json", "question", "latin", 2),
        ("second.json", "question", "zh", 1),
    ]

    first = {path.name: path.read_bytes() for path in REPORTS.iterdir()}
    assert {"retrieval_by_length.png", "retrieval_grid_lines.png", "loss_by_position.png"} <= set(first)
    assert run_stage("evaluate", evaluate) == 0
    assert {path.name: path.read_bytes() for path in REPORTS.iterdir()} == first

    client = MlflowClient(f"sqlite:///{inputs}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    child = next(run for run in runs if "test_loss" in run.data.metrics)
    kept = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
    assert "retrieval_by_length.csv" in kept
    assert not {"predictions.jsonl", "retrieval_predictions.jsonl"} & kept


def test_a_killed_evaluation_goes_on_to_the_same_files(inputs: Path) -> None:
    more = SETTINGS["retrieval"] | {"lengths": [600, 900, 1200], "contexts": 12}  # type: ignore[operator]
    set_params(evaluate=SETTINGS | {"threads": 1, "retrieval": more}, model={"base": "base"})
    process = start_evaluate(inputs)
    deadline = time.monotonic() + 120
    while len(finished_parts(inputs)) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not REPORTS.exists()
    before = len(finished_parts(inputs))
    with next((inputs / ".checkpoints").iterdir()).open("ab") as file:
        file.write(b'{"key": "cut sh')

    process = start_evaluate(inputs)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"parts done before: {before}" in " ".join(output.split())
    assert list((inputs / ".checkpoints").iterdir()) == []
    gone_on = {path.name: path.read_bytes() for path in REPORTS.iterdir()}
    process = start_evaluate(inputs)
    assert "parts done before" not in process.communicate(timeout=300)[0]
    assert {path.name: path.read_bytes() for path in REPORTS.iterdir()} == gone_on


def start_evaluate(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.evaluate"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished_parts(folder: Path) -> list[str]:
    files = (folder / ".checkpoints").glob("evaluate-*.jsonl")
    return [line for file in files for line in file.read_text("utf-8").splitlines()[1:] if line.endswith("}")]


def test_wrong_inputs_stop_the_stage_with_a_sentence(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message() -> str:
        assert run_stage("evaluate", evaluate) == 1
        assert not METRICS.exists() and not REPORTS.exists()
        return capsys.readouterr().err

    short = SETTINGS | {"retrieval": SETTINGS["retrieval"] | {"lengths": [128]}}  # type: ignore[operator]
    set_params(evaluate=short)
    assert "evaluate.retrieval.lengths: 128 is too short for task lines" in message()
    set_params(evaluate=SETTINGS, model={})
    assert "evaluate.retrieval.base_lengths needs model.base" in message()
    set_params(evaluate=SETTINGS, model={"base": "base"})
    (MODEL / "tokenizer.model").unlink()
    assert "models/tuned holds no tokenizer.model" in message()
    small_tokenizer().save(MODEL, "chatglm2")
    rows = pq.read_table(CONVERTED)
    pq.write_table(rows.slice(2), CONVERTED)
    assert "data/converted/test.parquet lacks 2 of the 12 rows" in message()
    TEST.unlink()
    assert "Run the tokenize stage first" in message()


def test_an_empty_test_split_says_what_is_missing(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pq.read_table(TEST).slice(0, 0), TEST)
    quiet = SETTINGS | {"retrieval": {**SETTINGS["retrieval"], "lengths": [600], "base_lengths": [], "files": []}}
    set_params(evaluate=quiet)
    assert run_stage("evaluate", evaluate) == 0
    assert "test_loss is missing: the test split has no supervised row" in capsys.readouterr().out
    metrics = json.loads(METRICS.read_text())
    assert "retrieval_lines_600" in metrics
    assert not [name for name in metrics if name.startswith(("test_", "rouge"))]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (float("nan"), "the weights of models/tuned are not finite"),
        (float("inf"), "the weights of models/tuned are not finite"),
        (1e30, "the held-out loss is"),
        (1e6, "training has diverged"),
    ],
)
def test_a_diverged_network_is_a_sentence(
    inputs: Path, factor: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(MODEL / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("output_layer.weight")]
    save_file({**weights, name: weights[name] * factor}, MODEL / "model.safetensors", {"format": "pt"})
    assert run_stage("evaluate", evaluate) == 1
    said = capsys.readouterr().err
    assert words in said and "lower train.learning_rate" in said.lower() and "Traceback" not in said
    assert not REPORTS.exists() and not METRICS.exists()


def test_damaged_rows_are_a_sentence(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (TEST, CONVERTED):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert run_stage("evaluate", evaluate) == 1
        said = capsys.readouterr().err
        assert f"{file} is a damaged or cut-off parquet file" in said and "Traceback" not in said
        file.write_bytes(whole)
