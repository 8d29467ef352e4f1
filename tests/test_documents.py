"""The documents: every `dvc exp run` they give has params that are accepted; links, files and names are there."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.test_params import load
from tests.workspace import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OF_THE_PAST = "CHANGELOG.md"
ROOMS = ("glm2core", "stages", "tests", "benchmarks", "scripts")
FILES = [f"/{file.relative_to(ROOT).as_posix()}" for room in ROOMS for file in (ROOT / room).rglob("*.py")]
OF_OTHERS = {"ptuning/main.py", "finetuning.py", "convert_hf_to_gguf.py"}


def experiments(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith("dvc exp run")]


def alternatives(value: str) -> list[Any]:
    """DVC's comma list, as a sweep takes it; commas in brackets belong to one value."""
    return [YAML(typ="safe", pure=True).load(part) for part in re.split(r",(?![^\[]*\])", value)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_experiment_has_params_that_are_accepted(document: Path, tmp_path: Path) -> None:
    for command in experiments(document):
        words = shlex.split(command, comments=True)
        pairs = [words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-S"]
        swept = any(len(alternatives(value)) > 1 for _, value in pairs)
        assert not swept or "--queue" in words, command
        for values in itertools.product(*(alternatives(value) for _, value in pairs)):
            load(tmp_path, {key: value for (key, _), value in zip(pairs, values, strict=True)})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert target.startswith(("http://", "https://")) or (document.parent / target).exists(), target


def named(file: str) -> list[Path]:
    """Our files that a document can mean by this name."""
    return [ROOT / path[1:] for path in FILES if path.endswith(f"/{file}")]


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name != OF_THE_PAST], ids=lambda path: path.name
)
def test_files_and_what_they_are_said_to_hold_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for file in set(re.findall(r"`([\w./-]+\.py)(?:::\w+)?`", text)) - OF_OTHERS:
        assert named(file), file
    held = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    for file, names in re.findall(r"`([\w/]+\.py)` (`\w+`(?:, `\w+`)*)", text):
        held += [(file, name) for name in re.findall(r"\w+", names)]
    for file, name in held:
        sources = [path.read_text(encoding="utf-8") for path in named(file)]
        assert any(re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE) for source in sources), (file, name)


def figures(document: Path) -> list[list[str]]:
    """The numbers in each row of the tables that say what a method takes."""
    rows = re.findall(r"^\| `(?:full|lora|qlora|ptuning)`.*", document.read_text(encoding="utf-8"), re.MULTILINE)
    return [sorted(re.findall(r"\d+(?:\.\d+)?", row)) for row in rows]


def test_the_chinese_page_on_weights_has_the_commands_and_figures_of_the_english_one() -> None:
    english, chinese = ROOT / "docs/your-weights.md", ROOT / "docs/your-weights.zh-CN.md"
    assert len(figures(chinese)) == 8 and figures(chinese) == figures(english)
    assert experiments(chinese) and set(experiments(chinese)) <= set(experiments(english))
    said = re.findall(r"^\| ([a-z].*?) \|", chinese.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(said) > 4 and all(f"| {sentence} |" in english.read_text(encoding="utf-8") for sentence in said)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if ".zh-CN" in path.name], ids=lambda path: path.name)
def test_no_chinese_paragraph_is_broken_into_lines(document: Path) -> None:
    """A line's end between two Chinese characters is shown as a space."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"[\u4e00-\u9fff，。、；：]\n[\u4e00-\u9fff]", text)
