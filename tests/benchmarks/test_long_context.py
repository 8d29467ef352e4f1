"""The table of the long-context controls, and what makes a file of theirs count as there."""

from pathlib import Path

import pytest
import torch

from benchmarks.long_context import CONTROLS, GROUPS, YARN, HalfTables, _key, _once, generated_questions, settled_params
from benchmarks.long_context_errors import _what_went_wrong, _wrong
from benchmarks.long_context_table import plot, print_table, table_rows, write_csv
from glm2core.evaluation.cases import Case, Question
from glm2core.evaluation.scores import Answer
from glm2core.lines.records import Line, question_text, record_text
from glm2core.model.presets import preset_config
from glm2core.model.rope import RotaryEmbedding


def answers(right: int, wrong: int, length: int, task: str = "lines") -> list[Answer]:
    return [
        Answer(task, length, 0, 0.5, index % 2 == 0, 0.01, 1000, 7, "line a-b: <7>" if index < right else "<8>")
        for index in range(right + wrong)
    ]


def test_seeds_are_put_together_and_their_range_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"tuned": [answers(10, 0, 2048), answers(8, 2, 2048) + answers(9, 1, 0, "200_lines")], "absent": []}
    rows = list(table_rows(given))
    assert [(row["length"], row["cases"], row["right"], row["seeds"]) for row in rows] == [
        (2048, 20, 18, 2),
        (0, 10, 9, 1),
    ]
    assert (rows[0]["lowest_seed"], rows[0]["highest_seed"]) == (0.8, 1.0)
    print_table(rows)
    printed = capsys.readouterr().out
    assert "| tuned | 90.0 (69.9–97.2; 80.0–100.0) |" in printed
    assert "tuned, 200_lines: 9 of 10 (1,000 tokens)" in printed
    assert "absent" not in printed
    write_csv(rows, tmp_path / "t.csv")
    plot(rows, tmp_path / "t.png")
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("tuned,lines,2048,2,20,18,0.9,")
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_the_main_control_has_the_defaults_positions() -> None:
    (control,) = (control for control in CONTROLS if control.name == YARN)
    rope = settled_params().model.rope
    assert (control.rope, control.factor, control.train) == (rope.type, rope.factor, {})


def test_the_main_control_is_asked_every_group_of_questions() -> None:
    (control,) = (control for control in CONTROLS if control.name == YARN)
    assert tuple(generated_questions(control, settled_params())) == GROUPS


def test_every_task_has_its_own_line_and_the_mean_of_its_points(capsys: pytest.CaptureFixture[str]) -> None:
    half = Answer(
        "niah_multiquery",
        2048,
        0,
        None,
        False,
        0.1,
        2000,
        None,
        "it is 17",
        references=("17", "18"),
        any_reference=False,
    )
    rows = list(table_rows({"tuned": [[*answers(1, 1, 2048), half]]}))
    assert [(row["task"], row["accuracy"]) for row in rows] == [("lines", 0.5), ("niah_multiquery", 0.5)]
    print_table(rows)
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "| tuned",
        "| tuned: niah_multiquery",
    ]


def test_a_file_counts_only_for_its_key_and_when_whole(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    _once(file, "first", lambda path: path.write_text("1") and None)
    assert _key(file) == "first"
    _once(file, "first", lambda path: pytest.fail("it is there already"))

    def broken(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _once(file, "second", broken)
    assert _key(file) == ""


def test_half_tables_round_angles_as_the_released_code_does() -> None:
    """Positions above 2,048 are not all whole numbers in fp16, nor above 256 in bf16."""
    config = preset_config("tiny")
    positions = torch.tensor([[200, 257, 2049, 9001]])
    exact = RotaryEmbedding(config.rope_parameters, config.rotary_channels).angles(positions)[0, :, 0]
    assert exact.tolist() == [200, 257, 2049, 9001]
    assert HalfTables(config.rope_parameters, config.rotary_channels, torch.bfloat16).angles(positions)[
        0, :, 0
    ].tolist() == [200, 256, 2048, 9024]
    assert HalfTables(config.rope_parameters, config.rotary_channels, torch.float16).angles(positions)[
        0, :, 0
    ].tolist() == [200, 257, 2048, 9000]


def test_a_wrong_answer_says_what_went_wrong() -> None:
    record = [Line("red", "fox", 11), Line("red", "fox-cub", 22), Line("old", "fox", 33)]
    questions = tuple(Question(question_text(line.key), line.value, 0.5, True) for line in record)
    case = Case("lines", 512, 0, record_text(record), questions, 0.3)
    said = ("line red-fox: <11>", "line red-fox-cub: <23>", "line red-fox: <11>")
    answers = [
        Answer("lines", 512, 0, 0.5, True, 0.3, 500, line.value, text) for line, text in zip(record, said, strict=True)
    ]
    found = [
        (key, _what_went_wrong(case, answer, key)) for case, answer, key in _wrong(answers, {("lines", 512, 0): case})
    ]
    assert found == [
        ("red-fox-cub", "the number; no line has the number given"),
        ("old-fox", "the key; another line has the number given"),
    ]
