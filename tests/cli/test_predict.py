"""predict: any source format, resumable, problems kept."""

import csv
import json
import shutil

import pytest

from glm2core.cli.main import main
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


def test_a_killed_run_goes_on(full_model, rows, tmp_path, capsys):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    sampled = ("--temperature", "1")
    assert predict(full_model, rows, "-o", str(whole), *sampled) == 0
    assert predict(full_model, rows, "-o", str(resumed), *sampled) == 0
    lines = resumed.read_bytes().splitlines(keepends=True)
    partial = tmp_path / "resumed.jsonl.partial"
    # What a kill leaves: the head, some batches, half a line
    head = _head_of_a_run(full_model, rows, tmp_path, sampled)
    resumed.unlink()
    partial.write_bytes(head + b"".join(lines[2:6]) + lines[6][:20])
    assert predict(full_model, rows, "-o", str(resumed), *sampled) == 0
    assert "going on: 4 of 10" in capsys.readouterr().err
    assert resumed.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_answers_of_another_making_are_not_continued(full_model, rows, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(_head_of_a_run(full_model, rows, tmp_path, ()))
    assert predict(full_model, rows, "-o", str(out), "--temperature", "0.5") == 1
    assert "another temperature" in capsys.readouterr().err
    assert partial.exists() and not out.exists()
    assert predict(full_model, rows, "-o", str(out), "--temperature", "0.5", "--restart") == 0
    assert predict(full_model, rows, "-o", str(out)) == 1
    assert "exists already" in capsys.readouterr().err


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
        ("[]", "holds no row"),
        ('[{"question": "a"}]', "can't be told from its columns"),
        ('[{"prompt": ""}]', "no row could be answered"),
    ],
)
def test_files_without_rows(content, words, full_model, tmp_path, capsys):
    file = tmp_path / "rows.json"
    if content is not None:
        file.write_text(content)
    assert predict(full_model, file) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "rows.json.answers.jsonl").exists()


def _head_of_a_run(model, rows, tmp_path, more):
    """The first line of a run that was stopped before its first answer, by a model folder that can't be loaded."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "config.json").write_text("{")
    out = tmp_path / "head.jsonl"
    assert predict(broken, rows, "-o", str(out), *more) == 1
    head = json.loads((tmp_path / "head.jsonl.partial").read_bytes().splitlines()[0])
    shutil.rmtree(broken)
    from glm2core.cli.predict import content_hash

    return json.dumps({**head, "model": content_hash(model)}).encode() + b"\n"
