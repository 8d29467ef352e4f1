"""docs/parameters.md is what the types and params.yaml say."""

import re

import pytest

from glm2core.cli.main import main
from glm2core.cli.parameters import commented, reference
from glm2core.params import flatten, load_params
from tests.cli.conftest import PROJECT


def test_the_document_is_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert main(["parameters"]) == 0
    printed = capsys.readouterr().out
    written = (PROJECT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert written == printed, "run: python -m glm2core parameters > docs/parameters.md"


def test_every_key_has_a_row_with_its_default_and_meaning():
    rows = [line.split(" | ") for line in reference(PROJECT / "params.yaml").splitlines() if line.startswith("| `")]
    assert {len(row) for row in rows} == {5}
    assert all(row[-1].strip(" |") for row in rows)
    by_key = {row[0].strip("| `"): row for row in rows}
    assert by_key.keys() >= flatten(load_params(PROJECT / "params.yaml")).keys()
    assert by_key["train.method"][2] == "`full`, `lora`, `qlora`, `ptuning`"
    assert by_key["train.quantization_bits"][2:4] == ["`auto`, `null`, `4`, `8`", "`auto`"]
    assert by_key["train.max_steps"][1:4] == ["whole number or auto or null", "1 or more, at most 10,000,000", "`auto`"]
    assert by_key["evaluate.retrieval.lengths"][1:3] == [
        "list (whole number) or auto",
        "each 128 or more, at most 100,000,000",
    ]
    assert by_key["convert.test_fraction"][1:3] == ["number", "0 or more, at most 1"]
    assert by_key["conversations"][3] == "required"


def test_comments_are_the_types_descriptions(capsys, monkeypatch):
    """Whatever an edit, or DVC's own writing of the file, left behind; entries of sources are their author's."""
    monkeypatch.chdir(PROJECT)
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    assert main(["parameters", "--comments"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("pattern", "edited"),
    [
        (r"logging_steps: 10 # .*", "logging_steps: 10"),
        (r"logging_steps: 10 # .*", "logging_steps: 10 # something else"),
        (r"  # number of optimizer steps; null = set by epochs.*\n", ""),
        (r"  # number of optimizer steps; null = set by epochs.*\n", "  # an old text\n  # of two lines\n"),
        (r"  learning_rate: auto", "  learning_rate: auto # and one behind"),
    ],
)
def test_a_comment_that_differs_is_put_right(pattern, edited, tmp_path):
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(pattern, edited, text)
    assert changed != text
    (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
    assert commented(tmp_path / "params.yaml") == text


def test_a_wrong_params_file_is_a_sentence(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("train: {methd: full}\n")
    assert main(["parameters", "--params", str(tmp_path / "params.yaml")]) == 1
    assert "train.methd is not a key" in capsys.readouterr().err
