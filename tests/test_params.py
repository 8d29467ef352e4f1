"""params.yaml is read strictly: what is wrong is named with its place, its value, the rule and the nearest name."""

import copy
import difflib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from glm2core.errors import UserError
from glm2core.params import Params, flatten, load_params

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
# The property tests reuse one file: each example writes it anew.
reuses_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def load(tmp_path: Path, changes: dict[str, Any]) -> Params:
    """Params of the project's file with dotted keys changed; JSON is YAML."""
    values = copy.deepcopy(DEFAULTS)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section = values
        for part in parents:
            section = section[int(part) if isinstance(section, list) else part]
        section[int(last) if isinstance(section, list) else last] = value
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return load_params(file)


def refusal(tmp_path: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, changes)
    return str(caught.value)


def test_the_projects_own_file_is_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.tokenize.max_source_length == 300
    assert params.tokenize.max_target_length == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.method": "qlor"}, ["train.method", "'qlor'", "full, lora, qlora, ptuning", "did you mean 'qlora'"]),
        ({"model.rope.type": "yarm"}, ["model.rope.type", "'yarm'", "auto, default, linear", "did you mean 'yarn'"]),
        ({"train.lora.targets": ["dens"]}, ["train.lora.targets[0]", "'dens'", "did you mean 'dense'"]),
        ({"train.quantization_bits": 3}, ["train.quantization_bits", "auto, null, 4, 8", "got 3"]),
        ({"train.max_steps": "many"}, ["train.max_steps must be a whole number", "got 'many'"]),
        ({"train.max_steps": 0}, ["train.max_steps must be at least 1", "got 0"]),
        ({"train.max_steps": True}, ["train.max_steps must be a whole number", "got true"]),
        ({"train.max_steps": 10.0}, ["train.max_steps must be a whole number", "got 10.0"]),
        ({"train.max_steps": "Auto"}, ["train.max_steps must be a whole number or auto or null", "got 'Auto'"]),
        ({"train.learning_rate": "1e-4"}, ["must be a number or auto", "'1e-4'", "without quotes"]),
        ({"train.learning_rate": 0}, ["train.learning_rate must be above 0", "got 0"]),
        ({"convert.validation_fraction": 1.5}, ["convert.validation_fraction must be at most 1", "got 1.5"]),
        ({"convert.sources": []}, ["convert.sources must have at least 1 entry"]),
        ({"convert.sources": "rows.json"}, ["convert.sources must be a list", "'rows.json'"]),
        ({"convert.sources.0": "rows.json"}, ["convert.sources[0] must hold the keys format, path", "'rows.json'"]),
        ({"convert.sources.0.path": 7}, ["convert.sources[0].path must be text or null", "got 7"]),
        ({"convert.sources.0.formt": "alpaca"}, ["sources[0].formt", "did you mean 'convert.sources[0].format'"]),
        ({"evaluate.retrieval.lengths": [512, 100]}, ["evaluate.retrieval.lengths[1] must be at least 128", "got 100"]),
        (
            {"train.gradient_checkpointing": "yes"},
            ["train.gradient_checkpointing must be true or false or auto", "'yes'"],
        ),
        ({"train": None}, ["train must hold the keys device", "got null"]),
        ({"learning_rate": 1e-4}, ["learning_rate is not a key", "did you mean 'train.learning_rate'"]),
        ({"train.rank": 8}, ["train.rank is not a key", "did you mean 'train.lora.rank'", "got 8"]),
        ({"tracking.experiment": ""}, ["tracking.experiment must not be empty"]),
    ],
)
def test_a_wrong_key_type_or_value_is_named(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    message = refusal(tmp_path, changes)
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train.method": "full", "train.quantization_bits": 4},
            ["method full", "quantization_bits to be auto or null", "it is 4"],
        ),
        (
            {"train.method": "lora", "train.quantization_bits": 8},
            ["method lora", "quantization_bits to be auto or null", "it is 8"],
        ),
        ({"train.method": "qlora", "train.quantization_bits": None}, ["method qlora", "auto or 4 or 8", "it is null"]),
        ({"train.method": "ptuning", "train.memory": "low"}, ["memory low needs method full", "method: ptuning"]),
        (
            {"train.memory": "low", "train.optimizer": "adafactor", "train.max_grad_norm": 1.0},
            ["max_grad_norm null", "combined with max_grad_norm: 1.0"],
        ),
        (
            {"model.rope.type": "default", "model.rope.factor": 4},
            ["model.rope: factor 4 has no effect with type default"],
        ),
        ({"train.max_steps": 10, "train.epochs": 1.5}, ["max_steps 10 and epochs 1.5", "one of them"]),
        ({"train.max_steps": None, "train.epochs": None}, ["max_steps and epochs are both null", "set one of them"]),
        ({"model.base": None, "evaluate.retrieval.base_lengths": [512]}, ["base_lengths needs model.base"]),
        ({"model.base": "models/x", "model.initialization": "retrieval"}, ["initialization is for networks from"]),
        ({"evaluate.retrieval.questions": 7, "evaluate.retrieval.depths": 5}, ["questions (7)", "depths (5)"]),
        ({"convert.validation_fraction": 0.6, "convert.test_fraction": 0.4}, ["below 1", "the sum is 1"]),
        ({"train.early_stopping": 2, "train.eval_steps": None}, ["early_stopping", "set eval_steps"]),
        (
            {"train.schedule": "wsd", "train.decay_fraction": 0.9, "train.warmup_fraction": 0.2},
            ["warmup_fraction 0.2", "decay_fraction 0.9", "lower one"],
        ),
        (
            {"train.curriculum": [{"until": 0.5, "max_tokens": 64}, {"until": 0.25, "max_tokens": 128}]},
            ["curriculum: each stage must end later", "[0.5, 0.25]"],
        ),
        ({"train.method": "lora", "train.query_scale": 1.3}, ["query_scale 1.3 changes", "method lora", "auto or 1"]),
        ({"convert.sources.0.path": None}, ["convert.sources[0]: path is needed"]),
    ],
)
def test_a_wrong_combination_is_named(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    message = refusal(tmp_path, changes)
    assert [part for part in said if part not in message] == []


AUTO_KEYS = sorted(key for key, value in flatten(load_params(ROOT / "params.yaml")).items() if value == "auto")
MAY_BE_NULL = {"train.quantization_bits", "train.max_steps", "train.epochs", "train.max_grad_norm"}
# Decided where torch is, by the stage that loads the network; their values were called auto before.
DECIDED_ELSEWHERE = {
    "train.device",
    "train.dtype",
    "evaluate.device",
    "evaluate.dtype",
    "tokenize.template",
    "model.family",
}


@pytest.mark.parametrize("key", [key for key in AUTO_KEYS if key not in MAY_BE_NULL | DECIDED_ELSEWHERE])
def test_an_old_null_where_auto_is_meant_is_refused(tmp_path: Path, key: str) -> None:
    message = refusal(tmp_path, {key: None})
    assert message.count(key) == 1 and len(message.splitlines()) == 1
    assert "got null (null means none: write auto)" in message


@pytest.mark.parametrize("key", [key for key in AUTO_KEYS if key not in DECIDED_ELSEWHERE])
def test_a_key_that_takes_auto_is_wrong_in_one_sentence(tmp_path: Path, key: str) -> None:
    message = refusal(tmp_path, {key: {"a": 1}})
    assert message.count(key) == 1 and len(message.splitlines()) == 1
    assert "auto" in message


@pytest.mark.parametrize("key", sorted(MAY_BE_NULL - {"train.quantization_bits"}))
def test_null_is_none_where_there_can_be_none(tmp_path: Path, key: str) -> None:
    assert flatten(load(tmp_path, {key: None}))[key] is None


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"train.methd": "full", "tokenize.max_source_length": -1, "evaluate.device": "gpu"})
    assert len(message.splitlines()) == 3
    for place in ("train.methd", "tokenize.max_source_length", "evaluate.device"):
        assert place in message


SCALAR_KEYS = sorted(key for key in flatten(load_params(ROOT / "params.yaml")) if key != "convert.sources")


@st.composite
def misspelt_keys(draw: st.DrawFn) -> tuple[str, str]:
    """A key and the same with one letter of its last part dropped, doubled, replaced or swapped."""
    key = draw(st.sampled_from(SCALAR_KEYS))
    section, _, name = key.rpartition(".")
    at = draw(st.integers(0, len(name) - 2))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    wrong = draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],
                name[:at] + letter + name[at:],
                name[:at] + letter + name[at + 1 :],
                name[:at] + name[at + 1] + name[at] + name[at + 2 :],
            ]
        )
    )
    return key, f"{section}.{wrong}"


@reuses_tmp_path
@given(keys=misspelt_keys())
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, keys: tuple[str, str]) -> None:
    key, wrong = keys
    assume(wrong.rpartition(".")[2] not in {known.rpartition(".")[2] for known in SCALAR_KEYS})
    message = refusal(tmp_path, {wrong: 1})
    meant = message.split("(did you mean '")[1].split("'?)")[0]

    def nearness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, candidate.rpartition(".")[2], wrong.rpartition(".")[2]).ratio()

    assert wrong in message
    assert meant.rpartition(".")[0] == key.rpartition(".")[0]
    assert nearness(meant) >= nearness(key)


@pytest.mark.parametrize("written", ["1e-4", "2e-05", "1E-4", "1.0e-4", "0.0001", "1e+0", ".5"])
def test_every_way_to_write_a_number_is_a_number(tmp_path: Path, written: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.strip().startswith("learning_rate:"))
    file = tmp_path / "params.yaml"
    file.write_text(text.replace(line, f"  learning_rate: {written}"), encoding="utf-8")
    assert load_params(file).train.learning_rate == float(written)


@pytest.mark.parametrize("written", [".nan", ".inf", "-.inf"])
def test_what_is_not_finite_is_refused(tmp_path: Path, written: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("weight_decay: 0.0", f"weight_decay: {written}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.weight_decay must be (a finite number|at least 0)"):
        load_params(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file must hold the keys convert, tokenize"),
        ("- a\n- b\n", "the file must hold the keys convert"),
        ("train: [1,\n", "is not valid YAML"),
        ("train: {}\ntrain: {}\n", 'line 2: found duplicate key "train"'),
        ("train: {1: 2}\n", "train has a key that is not text: 1"),
        ("convert: {sources: [{path: a}]}\n", "tokenize is missing"),
    ],
)
def test_a_broken_file_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_params(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_or_wrong_bytes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file.*Run the stages from the project's folder"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"train: \xff\n")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_params_are_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.max_steps = 1


def test_flatten_names_each_leaf_as_dvc_does() -> None:
    flat = flatten(load_params(ROOT / "params.yaml"))
    assert flat["train.lora.rank"] == DEFAULTS["train"]["lora"]["rank"]
    assert flat["evaluate.retrieval.lengths"] == DEFAULTS["evaluate"]["retrieval"]["lengths"]
    assert not {"train", "train.lora", "model.rope"} & set(flat)


def test_wrong_params_stop_a_process_that_has_no_torch_yet(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: {methd: full}\n", encoding="utf-8")
    code = (
        "import sys\nfrom glm2core.params import load_params\n"
        "try:\n    load_params()\nexcept ValueError as error:\n"
        "    print(error)\n    sys.exit(3 if 'torch' in sys.modules else 0)\nsys.exit(4)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "train.methd" in done.stdout
