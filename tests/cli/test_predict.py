"""predict: any source format, resumable, problems kept."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from glm2core.cli.answering import load_answerer
from glm2core.cli.main import _parser, main
from glm2core.cli.predict import _batches, _close, _Prompt, answer_rows, open_journal, read_questions
from glm2core.data.json_rows import Record
from tests.cli.conftest import PROJECT

QUICK = ["--max-new-tokens", "4", "--dtype", "float32", "--batch-size", "3"]


def predict(model, file, *more):
    return main(["predict", str(model), str(file), *QUICK, *more])


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def rows(tmp_path):
    """Ten chatGLM rows without an answer, one of them broken, one with history."""
    file = tmp_path / "rows.jsonl"
    entries = [{"prompt": f"question {n} " + "long " * n, "name": f"row {n}"} for n in range(9)]
    entries[4]["history"] = [["hello", "hi"]]
    texts = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    texts.insert(2, '{"prompt": "cut off')
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def test_every_row_gets_a_line_in_order(full_model, rows):
    assert predict(full_model, rows) == 0
    lines = lines_of(rows.with_name("rows.jsonl.answers.jsonl"))
    assert [line["line"] for line in lines] == list(range(1, 11))
    assert "not valid JSON" in lines[2]["problem"] and "answer" not in lines[2]
    answered = [line for line in lines if "answer" in line]
    assert len(answered) == 9
    assert answered[8]["row"]["name"] == "row 8"
    assert answered[8]["question"].startswith("question 8") and isinstance(answered[8]["finished"], bool)


def test_weights_with_nan_are_told(full_model, rows, tmp_path, capsys):
    folder = shutil.copytree(full_model, tmp_path / "diverged")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.output_layer.weight"][7, 7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for command in (["predict", str(folder), str(rows)], ["chat", str(folder)]):
        assert main([*command, "--dtype", "float32"]) == 1
        said = capsys.readouterr().err
        assert f"{folder}: the weights hold NaN or infinity" in said and "transformer.output_layer.weight" in said


def test_a_killed_run_goes_on(full_model, rows, tmp_path, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    settings = ["--temperature", "1", "--max-new-tokens", "200"]
    _kill_after_lines(3, ["predict", str(full_model), str(rows), *QUICK, "-o", str(out), *settings], partial)
    partial.write_bytes(partial.read_bytes() + b'{"key": 9, "value": {"pro')  # a line that was cut short
    assert predict(full_model, rows, "-o", str(out), *settings, "--temperature", "0.5") == 1
    assert "a different temperature" in capsys.readouterr().err
    assert not out.exists()
    assert predict(full_model, rows, "-o", str(out), *settings) == 0
    assert "continuing: " in capsys.readouterr().err
    assert not partial.exists()
    assert predict(full_model, rows, "-o", str(whole), *settings) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_finished_answers_are_not_overwritten_and_restart_forgets(full_model, rows, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.partial").write_text('{"model": "another"}\n{"key": 1, "value": {"answer": "old"}}\n')
    assert predict(full_model, rows, "-o", str(out)) == 1
    assert predict(full_model, rows, "-o", str(out), "--restart") == 0
    assert "old" not in out.read_text("utf-8")
    assert predict(full_model, rows, "-o", str(out), "--restart") == 1
    assert "already exists" in capsys.readouterr().err


def test_two_at_once_on_one_output(full_model, rows, tmp_path, capsys):
    """The second is refused while the first is at work; a lock that a killed one left holds nobody up."""
    out = tmp_path / "out.jsonl"
    lock = tmp_path / "out.jsonl.lock"
    with FileLock(lock):
        assert predict(full_model, rows, "-o", str(out)) == 1
    assert "another predict is writing" in capsys.readouterr().err
    assert not out.exists() and lock.exists()
    assert predict(full_model, rows, "-o", str(out)) == 0
    assert not lock.exists() and len(lines_of(out)) == 10


def test_a_large_file_is_not_held_in_memory(full_model, tmp_path):
    """Rows of 64 KiB that can't be answered: neither they nor their lines are gathered."""
    file, count = tmp_path / "rows.jsonl", 600
    with file.open("w") as handle:
        handle.write('{"prompt": "short"}\n')
        handle.writelines(json.dumps({"prompt": " ", "more": "x" * (1 << 16)}) + "\n" for _ in range(count))
    journal = open_journal(tmp_path / "out.jsonl", {})
    questions = read_questions(file, "auto", {})
    answerer = load_answerer(_parser().parse_args(["predict", str(full_model), str(file), *QUICK]), print)
    tracemalloc.start()
    answer_rows(answerer, questions, journal, batch_size=1, seed=0, progress=lambda rows: None)
    _close(journal, tmp_path / "out.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines_of(tmp_path / "out.jsonl")) == count + 1
    assert peak < 16 << 20  # the file has 40 MiB; a window of 16 rows


@pytest.mark.parametrize("source", ["alpaca_zh.json", "chat_pairs.jsonl"])
def test_the_projects_own_sources(source, full_model, tmp_path):
    """A handful of rows in each of the pipeline's formats."""
    rows = json.loads(
        f"[{(PROJECT / 'data/raw' / source).read_text('utf-8').strip().replace(chr(10), ',')}]"
        if source.endswith("l")
        else (PROJECT / "data/raw" / source).read_text("utf-8")
    )[:4]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert predict(full_model, file) == 0
    lines = lines_of(tmp_path / "rows.json.answers.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2, 3] and all("answer" in line for line in lines)


def test_csv_with_columns_of_its_own(full_model, tmp_path):
    file = tmp_path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["frage", "id"], ["Wie geht es?", "a"], ["", "b"]])
    assert predict(full_model, file, "--column", "prompt=frage") == 0
    answered, empty = lines_of(tmp_path / "rows.csv.answers.jsonl")
    assert answered["row"] == {"frage": "Wie geht es?", "id": "a"} and "answer" in answered
    assert "empty" in empty["problem"]


def test_a_prompt_beyond_the_models_positions_is_a_problem_of_its_row(full_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    prompts = ["short", "word " * 20000]
    file.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    assert predict(full_model, file) == 0
    lines = lines_of(tmp_path / "rows.jsonl.answers.jsonl")
    assert "answer" in lines[0] and "positions" in lines[1]["problem"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("[]", "has no rows"),
        ('[{"question": "a"}]', "can't detect the format of"),
        ('[{"prompt": ""}]', "no row could be answered"),
    ],
)
def test_files_without_rows(content, words, full_model, tmp_path, capsys):
    file = tmp_path / "rows.json"
    if content is not None:
        file.write_text(content)
    assert predict(full_model, file) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.glob("rows.json.answers*")) == []


def _kill_after_lines(count, arguments, partial):
    """Run the command in a process of its own and kill it when so many lines are on the disk."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "glm2core", *arguments],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not partial.exists() or partial.read_bytes().count(b"\n") < count:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.kill()


def test_long_rows_are_answered_alone_and_short_ones_together():
    tokens = [11_000, 8_192, 5_000, 4_000, 4_000, *[100] * 20]
    prompts = [_Prompt(Record(number, {}), [], count) for number, count in enumerate(tokens)]
    found = [[prompt.tokens for prompt in batch] for batch in _batches(prompts, 16)]
    assert found == [[11_000], [8_192], [5_000], [4_000, 4_000], [100] * 16, [100] * 4]
