"""Hostile params by hand: a short sentence each, and soon. tests/fuzz/test_params.py tries hundreds more."""

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from glm2core.errors import UserError
from glm2core.params import load_params

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
VALUES: dict[str, Any] = YAML(typ="safe", pure=True).load(TEXT)
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    file = tmp_path / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    started = time.perf_counter()
    with pytest.raises(UserError) as told:
        load_params(file)
    assert time.perf_counter() - started < 5
    said = str(told.value)
    assert len(said) < 8000 and all(line.startswith(str(file)) for line in said.splitlines())
    assert not any(character < " " for character in said.replace("\n", ""))
    return said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.max_steps", 10**7 + 1, "must be at most 10,000,000"),
        ("train.batch_tokens", 2**63, "must be at most 1,000,000,000"),
        ("train.gradient_accumulation_steps", 2**64, "must be at most 1,000,000,000"),
        ("train.seed", 2**32, "must be at most 4,294,967,295"),
        ("convert.seed", 2**64, "must be at most 4,294,967,295"),
        ("evaluate.retrieval.seed", 10**400, "must be at most 4,294,967,295"),
        ("train.threads", 2000, "must be at most 1,024"),
        ("tokenize.threads", 10**9, "must be at most 1,024"),
        ("tokenize.max_source_length", 10**12, "must be at most 1,000,000,000"),
        ("train.lora.rank", 10**12, "must be at most 1,000,000,000"),
        ("train.learning_rate", 1e7, "must be at most 1,000,000"),
        ("train.learning_rate", 1e308, "must be at most 1,000,000"),
        ("train.weight_decay", 1e308, "must be at most 1,000,000"),
        ("train.bias_rate", 1e30, "must be at most 1,000,000"),
        ("train.max_grad_norm", 1e30, "must be at most 1,000,000"),
        ("train.epochs", 1e30, "must be at most 10,000"),
        ("model.rope.factor", 1e30, "must be at most 1,000,000"),
        ("model.rope.unit", 2**63, "must be at most 1,000,000,000"),
        ("evaluate.retrieval.lengths", [10**12], "lengths[0] must be at most 100,000,000"),
        ("evaluate.generation.rows", 10**12, "must be at most 1,000,000,000"),
        ("train.max_steps", -1, "must be at least 1"),
        ("train.max_steps", True, "must be a whole number"),
        ("train.max_steps", 1e3, "must be a whole number"),
        ("train.max_steps", [1], "must be a whole number"),
        ("train.learning_rate", True, "must be a number"),
        ("model.base", "a\0b", "holds a control character"),
        ("model.base", "\x1b[31mred", "holds a control character"),
        ("model.base", "x" * 300, "a name of more than 255 bytes"),
        ("model.base", "x/" * 3000, "must have at most 4096 characters"),
        ("convert.sources.0.path", "a\nb", "holds a control character"),
        ("convert.sources.0.path", "é" * 200, "a name of more than 255 bytes"),
        ("convert.sources.0.columns", {"prompt": 1}, "columns.prompt must be text"),
        ("convert.sources.0.columns", {"prompt": "q", "response": "q"}, "columns maps two names to q"),
        ("convert.sources.0.columns", [1], "must hold names and texts, as in {a: b}"),
        ("convert.sources.0", {"x" * 900: 1}, "is not a key"),
        ("evaluate.retrieval.files", ["\0"], "holds a control character"),
        ("tracking.experiment", "x" * 1000, "must have at most 250 characters"),
        ("tracking.experiment", "a\nb", "holds a control character"),
        ("tracking.log_examples", "true", "must be true or false"),
        ("train.method", "x" * 100_000, "must be one of full, lora"),
        ("train.optimizer", ["adamw"] * 5000, "must be one of auto, adamw"),
        ("train.curriculum", [{"until": 0.5, "max_tokens": 9}] * 1000, "each stage must end later"),
        ("train.lora.targets", ["dense"] * 3 + [{}] * 3000, "and 2,980 more"),
        ("train.lora", None, "must hold the keys rank"),
    ],
)
def test_a_value_out_of_bounds_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    values = copy.deepcopy(VALUES)
    *parents, last = key.split(".")
    section: Any = values
    for part in parents:
        section = section[int(part) if isinstance(section, list) else part]
    section[int(last) if isinstance(section, list) else last] = value
    text = TEXT.replace("seed: 2026", f"seed: 0x{value:x}") if value == 10**400 else json.dumps(values)  # no JSON of it
    assert said in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch owned']", "line 1: has the tag"),
        ("train: !!python/name:os.system {}", "line 1: has the tag"),
        ("train: {max_steps: !!int 3}", "line 1: has the tag"),
        ("train: ! x", "line 1: has the tag"),
        ("%TAG ! tag:x,2000:\n---\na: 1", "defines its own tags"),
        ("train: {max_steps: " + "9" * 5000 + "}", "is not valid YAML: Exceeds the limit"),
        ("train: {learning_rate: 2001-99-99}", "is not valid YAML: month must be in 1..12"),
        ("train: {seed: 2001-12-14}", "tokenize is missing"),
        ("[" * 10_000, "is nested deeper than 20 levels"),
        ("{a: " * 10_000, "is nested deeper than 20 levels"),
        ("- " * 10_000 + "a", "is nested deeper than 20 levels"),
        (BOMB, "holds more than 10,000 values"),
        ("a: &a [*a]", "refers to *a, which is not complete anywhere before this line"),
        ("a: *b", "refers to *b, which is not complete anywhere before this line"),
        ("".join(f"key_{i}: {i}\n" for i in range(20_000)), "holds more than 10,000 values"),
        (TEXT + "".join(f"key_{i}: {i}\n" for i in range(4_000)), "and 3,980 more"),
        ("x" * 2_000_000, "has more than 1,048,576 bytes"),
        ("{[a]: b}", "params.yaml"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("<<: 5", "is not valid YAML"),
        ('convert: "\\ud800"', "convert must hold the keys"),
        (b"a: \x00", "is not valid YAML"),
        (b"\xff\xfea", "is not valid YAML"),
        ("train: {1: 2}", "has a key that is not text: 1"),
    ],
)
def test_a_hostile_text_is_a_short_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(tmp_path, content)
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]  # nothing of it ran


def test_an_alias_of_a_few_values_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT.replace("seed: 12", "seed: &seed 12").replace("seed: 13", "seed: *seed"), encoding="utf-8")
    sources = load_params(file).convert.sources
    assert [source.generate.seed for source in sources if source.generate is not None] == [12, 12]


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="is not a file"):
        load_params(tmp_path / "params.yaml")
