"""The documents: every `dvc exp run` they give has params that are accepted, and their links lead somewhere."""

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
