"""tuning.yaml came with somebody's weights: what is not plain advice is refused, and nothing in it runs."""

import os
from pathlib import Path

import pytest

from glm2core.errors import UserError
from glm2core.params import flatten, load_params, read_base, settle, shown, unsettled
from glm2core.params.advice import dotted

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 5_000 + "]" * 5_000
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def advise(folder: Path, text: str | bytes) -> Path:
    (folder / "tuning.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {seed: 1}", ["train.seed is not a key"]),
        ("train: {threads: 64}", ["train.threads is not a key"]),
        ("train: {launcher: 'sh -c id'}", ["train.launcher is not a key"]),
        ("model: {base: /etc}", ["model.base is not a key"]),
        ("convert: {sources: []}", ["convert is not a key"]),
        ("tracking: {experiment: x}", ["tracking is not a key"]),
        ("train: {optimizer: auto}", ["train.optimizer must be one of", "got 'auto'"]),
        ("train: {learning_rate: fast}", ["train.learning_rate must be a number", "'fast'"]),
        ("train: {learning_rate: .inf}", ["train.learning_rate must be a finite number"]),
        ("train: {learning_rate: -1, bias_rate: .nan}", ["learning_rate must be above 0", "bias_rate must be"]),
        ("train: {max_steps: 1000001}", ["train.max_steps is too large for advice"]),
        ("evaluate: {retrieval: {lengths: [512, 2000000]}}", ["lengths is too large for advice"]),
        (f"evaluate: {{retrieval: {{lengths: [{'512, ' * 101}]}}}}", ["lengths is too large", "100 entries"]),
        ("train: {curriculum: [{until: 0.5, max_tokens: 9, run: id}]}", ["train.curriculum[0].run is not a key"]),
        ("train: 5", ["train must hold the keys"]),
        ("- a", ["the file must hold the keys model, train, evaluate"]),
        ("train: {1: 2}", ["a key that is not text"]),
        ("!!python/object/apply:os.system ['touch owned']", ["line 1: has the tag"]),
        ("train: !!python/name:os.system {}", ["line 1: has the tag"]),
        ("train: [1,", ["not valid YAML"]),
        ("train: {max_steps: 1}\ntrain: {max_steps: 2}", ["line 2: found duplicate key"]),
        ("train: {max_steps: " + "9" * 5_000 + "}", ["not valid YAML"]),
        (LAUGHS, ["holds more than 10,000 values"]),
        ("train: {curriculum: [*b]}", ["refers to *b"]),
        ("train: {curriculum: " + DEEP + "}", ["nested deeper than 20 levels"]),
        ("# " + "x" * 20_000, ["more than 16,384 bytes"]),
        (b"train: \xff", ["not valid YAML"]),
        (b"train: \x00", ["not valid YAML"]),
    ],
)
def test_what_is_no_advice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        read_base(advise(tmp_path, text))
    assert [part for part in [*said, "tuning.yaml"] if part not in str(told.value)] == []
    assert len(str(told.value)) < 2_000
    assert list(tmp_path.iterdir()) == [tmp_path / "tuning.yaml"]  # nothing of it ran


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "tuning.yaml"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"tuning\.yaml is not a file"):
        read_base(tmp_path)


def test_no_advice_is_fine(tmp_path: Path) -> None:
    assert (read_base(tmp_path).advice, read_base(tmp_path).tuning_sha256) == ({}, None)
    base = read_base(advise(tmp_path, "# nothing yet\n"))
    assert base.advice == {} and base.tuning_sha256 is not None


def test_every_key_that_takes_auto_can_be_advised_but_threads(tmp_path: Path) -> None:
    """The whole of params.yaml's `auto` keys, each with the value that the embedded base's run has."""
    params = load_params(ROOT / "params.yaml")
    settled = settle(params, read_base(ROOT / "models" / "base"), "cpu")
    keys = {key for key in unsettled(params) if not key.endswith("threads")}
    values = flatten(settled) | {"train.gradient_checkpointing": False}  # what auto became is not to be written
    lines: list[str] = []
    for key in sorted(keys - {"train.curriculum"}):
        base = advise(tmp_path, _nested(key, shown(values[key])))
        assert dotted(read_base(base).advice) == {key: values[key]}
        lines.append(key)
    assert len(lines) == len(keys) - 1 > 20


def _nested(key: str, value: str) -> str:
    text = value
    for name in reversed(key.split(".")):
        text = f"{{{name}: {text}}}"
    return text
