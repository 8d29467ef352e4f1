"""The evaluate stage from files to files."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from glm2core.data.converted import SCHEMA as CONVERTED_SCHEMA
from glm2core.model.adapters import adapt, is_base_inside, reference_to, save_adapter
from glm2core.model.loading import load_model
from glm2core.model.rope import RopeScaling, plain_rope
from glm2core.params import PARAMS_FILE, LoraParams, PrefixParams
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
        "exact_match",
        "answers_loss",
        *(f"base_{name}" for name in ("exact_match", "rouge_1", "rouge_2", "rouge_l", "bleu_4", "answers_loss")),
        "by_source",
        "retrieval_lines_600",
        "retrieval_lines_1200",
        "retrieval_passkey_600",
        "retrieval_passkey_1200",
        "longeval_2_lines",
        "retrieval_accuracy",
        "effective_context_length",
        "effective_context_length_ruler",
        "peak_memory_gib",
        "seconds",
        "base_retrieval_lines_600",
        "base_retrieval_passkey_600",
        "short_context_change",
        "settled",
    }
    predictions = [json.loads(line) for line in (REPORTS / "predictions.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in predictions} == {("model", "source", "id", "prompt", "reference", "answer")}
    assert [row["model"] for row in predictions] == ["tuned"] * 6 + ["base"] * 6
    assert {row["id"] for row in predictions[:6]} == {row["id"] for row in predictions[6:]}
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
    compared = polars.read_csv(REPORTS / "before_after.csv")
    assert compared.select("source", "model", "rows").rows() == [
        (source, model, rows)
        for source, rows in (("all", 6), ("first.json", 3), ("second.json", 3))
        for model in ("base", "tuned")
    ]
    of_all = compared.filter(source="all", model="base").row(0, named=True)
    assert metrics["base_rouge_1"] == pytest.approx(of_all["rouge_1"], rel=1e-5)
    assert metrics["base_answers_loss"] == pytest.approx(of_all["loss"], rel=1e-5)
    assert set(metrics["by_source"]) == {"first.json", "second.json"}
    assert metrics["answers_loss"] != metrics["base_answers_loss"]
    scores = polars.read_csv(REPORTS / "scores_by_source.csv")
    keys = [tuple(row) for row in scores.select("source", "kind", "language", "rows").iter_rows()]
    assert scores["model"].to_list() == ["tuned"] * 9 + ["base"] * 9
    assert (
        keys[:9]
        == keys[9:]
        == [
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
    )

    first = {path.name: path.read_bytes() for path in REPORTS.iterdir()}
    pictures = {"retrieval_by_length.png", "retrieval_grid_lines.png", "loss_by_position.png", "before_after.png"}
    assert pictures <= set(first)
    assert run_stage("evaluate", evaluate) == 0
    assert {path.name: path.read_bytes() for path in REPORTS.iterdir()} == first

    client = MlflowClient(f"sqlite:///{inputs}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    child = next(run for run in runs if "test_loss" in run.data.metrics)
    kept = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
    assert {"retrieval_by_length.csv", "before_after.csv", "before_after.png"} <= kept
    assert child.data.metrics["by_source.first.json.base_exact_match"] == 0
    assert not {"predictions.jsonl", "retrieval_predictions.jsonl"} & kept
    page = Path(client.download_artifacts(child.info.run_id, "report.html")).read_text(encoding="utf-8")
    assert "Worst answers to held-out rows" in first["report.html"].decode()  # the copy in MLflow has no texts
    assert "Worst answers to held-out rows" not in page and 'class="beside"' not in page


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
    assert f"parts already done: {before}" in " ".join(output.split())
    assert list((inputs / ".checkpoints").iterdir()) == []
    gone_on = {path.name: path.read_bytes() for path in REPORTS.iterdir()}
    process = start_evaluate(inputs)
    assert "parts already done" not in process.communicate(timeout=300)[0]
    assert {path.name: path.read_bytes() for path in REPORTS.iterdir()} == gone_on


def quietly(**changes: object) -> dict[str, object]:
    """Settings without retrieval, whose answers take most of the time."""
    retrieval = {**SETTINGS["retrieval"], "tasks": [], "base_lengths": [], "files": []}  # type: ignore[dict-item]
    return SETTINGS | {"retrieval": retrieval} | changes


def test_rows_of_another_kind_show_what_was_forgotten(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"line a-b <{n}>", "output": f"REGISTER_CONTENT is <{n}>"} for n in range(9)]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"instruction": "no answer"}, *rows]))
    set_params(evaluate=quietly(general="other.jsonl"), model={"base": "base"})
    assert run_stage("evaluate", evaluate) == 0
    metrics = json.loads(METRICS.read_text())
    change = metrics["general_loss"] - metrics["base_general_loss"]
    assert metrics["general_loss_change"] == pytest.approx(change) != 0
    answered = polars.read_parquet(REPORTS / "answers.parquet")
    assert answered.filter("general")["source"].unique().to_list() == ["general: other.jsonl"]
    assert answered.group_by("model").len()["len"].to_list() == [12, 12]
    compared = polars.read_csv(REPORTS / "before_after.csv").filter(model="tuned")
    assert compared.select("source", "rows").rows()[:2] == [("all", 6), ("first.json", 3)]
    assert ("general: other.jsonl", 6) in compared.select("source", "rows").rows()
    assert "general: other.jsonl" in capsys.readouterr().out

    for name, sentence in {"none.jsonl": "none.jsonl is not a file", "2_lines.jsonl": "2_lines.jsonl"}.items():
        set_params(evaluate=quietly(general=name), model={"base": "base"})
        assert run_stage("evaluate", evaluate) == 1
        assert "evaluate: evaluate.general: " in (said := capsys.readouterr().err) and sentence in said


@pytest.mark.parametrize("scaled", [False, True])
def test_an_adapter_is_switched_off_where_its_base_is_inside(inputs: Path, scaled: bool) -> None:
    """With a RoPE scaling of its own, the base is another network than the one inside, and is loaded alone."""
    network = load_model(Path("base"), dtype=torch.float32, rope=RopeScaling("linear", 4.0) if scaled else None)
    adapted = adapt(network, "lora", LoraParams(dropout=0.0), PrefixParams())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    reference = reference_to(Path("base"), own=False, rope=RopeScaling("linear", 4.0) if scaled else None)
    shutil.rmtree(MODEL)
    save_adapter(adapted, MODEL, reference, Path("base"))
    small_tokenizer().save(MODEL, "chatglm2")
    assert is_base_inside(MODEL) is not scaled
    set_params(evaluate=quietly(), model={"base": "base"})
    assert run_stage("evaluate", evaluate) == 0
    ours = json.loads(METRICS.read_text())
    shutil.rmtree(MODEL)
    shutil.copytree("base", MODEL)
    small_tokenizer().save(MODEL, "chatglm2")
    assert run_stage("evaluate", evaluate) == 0
    of_base = json.loads(METRICS.read_text())
    assert ours["base_answers_loss"] == pytest.approx(of_base["answers_loss"], rel=1e-6)
    assert ours["base_rouge_1"] == of_base["rouge_1"]
    assert ours["answers_loss"] != pytest.approx(of_base["answers_loss"], rel=1e-3)


def test_the_base_is_left_out_where_params_say_so(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generation = {**SETTINGS["generation"], "base": False}  # type: ignore[dict-item]
    set_params(evaluate=quietly(generation=generation), model={"base": "base"})
    assert run_stage("evaluate", evaluate) == 0
    assert not [name for name in json.loads(METRICS.read_text()) if name.startswith("base_r")]
    assert set(polars.read_csv(REPORTS / "before_after.csv")["model"]) == {"tuned"}
    set_params(evaluate=quietly(generation={**generation, "base": True}), model={})
    assert run_stage("evaluate", evaluate) == 1
    assert "evaluate.generation.base is true and needs model.base" in capsys.readouterr().err


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
    assert "models/tuned has no tokenizer.model" in message()
    small_tokenizer().save(MODEL, "chatglm2")
    rows = pq.read_table(CONVERTED)
    pq.write_table(rows.slice(2), CONVERTED)
    assert "data/converted/test.parquet lacks 2 of the 12 tokenized rows" in message()
    TEST.unlink()
    assert "Run the tokenize stage first" in message()


def test_an_empty_test_split_says_what_is_missing(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pq.read_table(TEST).slice(0, 0), TEST)
    quiet = SETTINGS | {"retrieval": {**SETTINGS["retrieval"], "lengths": [600], "base_lengths": [], "files": []}}
    set_params(evaluate=quiet)
    assert run_stage("evaluate", evaluate) == 0
    assert "test_loss is missing because the test split has no supervised row" in capsys.readouterr().out
    metrics = json.loads(METRICS.read_text())
    assert "retrieval_lines_600" in metrics
    assert not [name for name in metrics if name.startswith(("test_", "rouge"))]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (float("nan"), "the weights hold NaN or infinity"),
        (float("inf"), "the weights hold NaN or infinity"),
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
