"""What each `auto` becomes: the demo's values as they were, and sensible ones for released weights of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm2core.errors import UserError
from glm2core.params import (
    DEVICE_KINDS,
    DeviceKind,
    Params,
    Settled,
    flatten,
    load_params,
    read_base,
    read_tuning_record,
    settle,
    unsettled,
)
from tests.model.released_layout import released_config
from tests.test_params import load

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ("chatglm2-6b", "chatglm2-6b-32k", "codegeex2-6b", "chatglm3-6b", "chatglm3-6b-32k", "chatglm3-6b-128k")
METHODS = ("full", "lora", "qlora", "ptuning")
# Of all members; the checkpoints that other tests write are smaller.
SIZES = {
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "multi_query_group_num": 2,
}
# What the default run settles.
DEMO: dict[str, Any] = {
    "model.rope.type": "yarn",
    "model.rope.factor": 16,
    "model.rope.unit": 2048,
    "train.quantization_bits": None,
    "train.max_steps": 1600,
    "train.epochs": None,
    "train.batch_tokens": 1024,
    "train.learning_rate": 1.5e-3,
    "train.schedule": "linear",
    "train.decay_fraction": 0.6,
    "train.warmup_fraction": 0.03,
    "train.optimizer": "muon",
    "train.bias_rate": 1,
    "train.query_scale": 1.2,
    "train.max_grad_norm": 1.0,
    "train.memory": "normal",
    "train.gradient_checkpointing": "fit",
    "train.position_stretch": True,
    "train.curriculum": [],
    "train.generated_rows": 1,
    "train.save_steps": 1000,
    "evaluate.generation.rows": 300,
    "evaluate.generation.base": True,
    "evaluate.retrieval.tasks": ["lines"],
    "evaluate.retrieval.shared": False,
    "evaluate.retrieval.lengths": [512, 1024, 2048, 4096, 8192, 16384, 32768],
    "evaluate.retrieval.base_lengths": [512, 1024, 2048, 4096, 8192],
    "evaluate.retrieval.contexts": 2,
    "evaluate.retrieval.questions": 50,
}


def settled(params: Params, kind: DeviceKind = "cpu") -> Settled:
    return settle(params, read_base(params.model.base, params.model.preset), kind)


def released(
    tmp_path: Path, name: str, kind: DeviceKind, changes: dict[str, Any] | None = None, advice: str = ""
) -> Settled:
    """The project's params on a folder with a released config.json, and nothing else changed but `changes`."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(released_config(name, **SIZES)), encoding="utf-8")
    if advice:
        (folder / "tuning.yaml").write_text(advice, encoding="utf-8")
    return settled(load(tmp_path, {"model.base": str(folder), **(changes or {})}), kind)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_the_default_run_is_settled_as_expected(monkeypatch: pytest.MonkeyPatch, kind: DeviceKind) -> None:
    monkeypatch.chdir(ROOT)
    found = settled(load_params(), kind)
    values = flatten(found)
    assert {key: values[key] for key in DEMO} == DEMO
    threads = {"train.threads", "evaluate.threads"}
    assert found.origins.keys() == DEMO.keys() - {"model.rope.unit"} | threads
    advised = {"model.rope.type", "train.optimizer", "train.learning_rate", "evaluate.retrieval.lengths"}
    assert {found.origins[key] for key in advised} == {"the base's tuning.yaml"}


@pytest.mark.parametrize("method", ["lora", "qlora", "ptuning"])
def test_only_full_tuning_scales_the_queries_of_the_base(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params()
    found = settled(params.model_copy(update={"train": params.train.model_copy(update={"method": method})}))
    assert (found.train.query_scale, found.origins["train.query_scale"]) == (1, f"method {method}")


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_the_recipe_of_the_base_is_what_it_was(monkeypatch: pytest.MonkeyPatch, kind: DeviceKind) -> None:
    monkeypatch.chdir(ROOT)
    values = flatten(settled(load_params(Path("models/base/params.yaml")), kind))
    assert values["model.rope.type"] == "default" and values["model.rope.factor"] == 1
    expected = {
        "max_steps": 15500,
        "epochs": None,
        "batch_tokens": 1024,
        "learning_rate": 3e-3,
        "schedule": "linear",
        "warmup_fraction": 0.005,
        "optimizer": "muon",
        "bias_rate": 1,
        "max_grad_norm": 1.0,
        "memory": "normal",
        "gradient_checkpointing": False,
        "position_stretch": True,
        "generated_rows": 1,
        "threads": 2,
    }
    assert {name: values[f"train.{name}"] for name in expected} == expected
    assert [stage.until for stage in values["train.curriculum"]] == [0.35, 0.6]


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_released_weights_need_a_base_and_a_method_only(
    tmp_path: Path, name: str, method: str, kind: DeviceKind
) -> None:
    found = released(tmp_path, name, kind, {"train.method": method})
    train, evaluate, gpu, full = found.train, found.evaluate, kind == "cuda", method == "full"
    assert (found.model.rope.type, found.model.rope.factor) == (None, 1)  # a scaled one keeps its scaling
    assert train.quantization_bits == (4 if method == "qlora" else None)
    assert train.learning_rate == {"full": 1e-5, "lora": 1e-4, "qlora": 2e-4, "ptuning": 1e-2}[method]
    assert (train.optimizer, train.memory) == (("adafactor", "low") if full else ("adamw", "normal"))
    assert train.max_grad_norm == (None if full else 1)
    assert train.gradient_checkpointing == "fit"
    assert (train.schedule, train.warmup_fraction, train.bias_rate) == ("cosine", 0.03, 1)
    assert (train.position_stretch, train.curriculum, train.generated_rows) == (False, [], 0)
    assert (train.max_steps, train.epochs) == ((None, 2) if gpu else (100, None))
    assert (train.batch_tokens, train.save_steps) == ((1024, 100) if gpu else (512, 20))
    positions = released_config(name)["seq_length"]
    lengths = [length for length in (512, 1024, 2048, 4096, 8192, 16384, 32768) if length <= positions]
    assert evaluate.retrieval.lengths == (lengths if gpu else [512, 1024])
    assert evaluate.retrieval.base_lengths == ([512, 1024, 2048, 4096, 8192] if gpu else [512])
    assert (evaluate.retrieval.contexts, evaluate.generation.rows) == ((4, 64) if gpu else (1, 8))
    assert evaluate.generation.base is gpu
    assert found.origins["evaluate.generation.base"] == ("default" if gpu else "over 1 billion parameters on a CPU")
    assert 6.2e9 < (found.base.parameters or 0) < 6.3e9
    assert found.origins["train.learning_rate"] == f"method {method}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.max_steps": 7}, {"train.max_steps": 7, "train.epochs": None}),
        ({"train.epochs": 3.0}, {"train.max_steps": None, "train.epochs": 3}),
        ({"train.max_steps": None}, {"train.max_steps": None, "train.epochs": 2}),
        ({"train.epochs": None}, {"train.max_steps": 100, "train.epochs": None}),
        ({"train.method": "full", "train.optimizer": "adamw"}, {"train.memory": "normal", "train.max_grad_norm": 1}),
        ({"train.method": "full", "train.max_grad_norm": 1.0}, {"train.memory": "normal", "train.optimizer": "adamw"}),
        ({"train.method": "full", "train.gradient_accumulation_steps": 4}, {"train.memory": "normal"}),
        ({"train.method": "full", "train.launcher": "torchrun --nproc_per_node 2"}, {"train.memory": "normal"}),
        ({"train.method": "full", "train.gradient_checkpointing": False}, {"train.gradient_checkpointing": False}),
        ({"train.method": "ptuning", "train.quantization_bits": 8}, {"train.quantization_bits": 8}),
        (
            {"model.rope.type": "yarn", "model.rope.factor": 4},
            {"train.generated_rows": 1, "evaluate.retrieval.lengths": [512, 1024]},
        ),
        ({"train.generated_rows": 0.25}, {"train.generated_rows": 0.25}),
        ({"evaluate.retrieval.lengths": [2048]}, {"evaluate.retrieval.base_lengths": []}),
    ],
)
def test_what_is_written_goes_first(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    values = flatten(released(tmp_path, "chatglm2-6b", "cpu", changes))
    assert {key: values[key] for key in expected} == expected
    assert {key: values[key] for key in changes} == changes


ADVICE = """
train: {memory: low, optimizer: adamw_8bit, epochs: 1, quantization_bits: 8, max_grad_norm: 0.3, bias_rate: 1}
"""


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # Advice that doesn't fit what is settled already is left: `auto` means something that runs.
        ("full", {"memory": "low", "optimizer": "adafactor", "quantization_bits": None, "max_grad_norm": None}),
        ("lora", {"memory": "normal", "optimizer": "adamw_8bit", "quantization_bits": None, "max_grad_norm": 0.3}),
        ("qlora", {"memory": "normal", "optimizer": "adamw_8bit", "quantization_bits": 8, "epochs": 1}),
        ("ptuning", {"memory": "normal", "quantization_bits": 8, "max_steps": None, "epochs": 1}),
    ],
)
def test_advice_is_taken_where_it_fits_the_method(tmp_path: Path, method: str, expected: dict[str, Any]) -> None:
    train = released(tmp_path, "chatglm2-6b", "cpu", {"train.method": method}, ADVICE).train
    assert {name: getattr(train, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "advice", "said"),
    [
        ({"model.rope.factor": 4}, "", ["factor 4 has no effect with type auto", "set type to linear"]),
        ({"model.rope.type": "linear"}, "", ["type is linear", "base advises no factor", "Set model.rope.factor"]),
        ({"train.optimizer": "muon"}, "", ["optimizer muon (params.yaml)", "6.2 billion", "-S train.optimizer=adamw"]),
        ({"train.bias_rate": 20}, "", ["bias_rate 20 (params.yaml)", "-S train.bias_rate=1"]),
        ({"train.learning_rate": 3e-3}, "", ["learning_rate 0.003", "-S train.learning_rate=1e-05"]),
        (
            {"train.method": "qlora", "train.learning_rate": 3e-3},
            "",
            ["learning_rate 0.003", "-S train.learning_rate=0.0002"],
        ),
        ({}, "train: {learning_rate: 0.5}", ["learning_rate 0.5 (the base's tuning.yaml)", "1e-05"]),
        ({"train.warmup_fraction": 0.5, "train.schedule": "wsd"}, "", ["decay_fraction 0.6 add up to more"]),
        (
            {"train.warmup_fraction": 0.5},
            "train: {schedule: wsd}",
            ["decay_fraction 0.6 add up to more", "settled with the base's tuning.yaml"],
        ),
        ({"train.method": "lora", "train.memory": "low"}, "", ["memory low needs method full", "method: lora"]),
    ],
)
def test_a_wrong_combination_still_stops(tmp_path: Path, changes: dict[str, Any], advice: str, said: list[str]) -> None:
    with pytest.raises(UserError) as told:
        released(tmp_path, "chatglm2-6b", "cpu", changes, advice)
    assert [part for part in said if part not in str(told.value)] == []


def test_a_rate_is_high_by_its_methods_default(tmp_path: Path) -> None:
    changes = {"train.method": "ptuning", "train.learning_rate": 2e-2}
    assert released(tmp_path, "chatglm2-6b", "cpu", changes).train.learning_rate == 2e-2


@pytest.mark.parametrize(
    ("preset", "method", "rate", "large"),
    [("tiny", "full", 1e-3, False), ("small", "lora", 1e-4, False), ("chatglm2-6b", "full", 1e-3, True)],
)
def test_a_network_from_scratch(tmp_path: Path, preset: str, method: str, rate: float, large: bool) -> None:
    found = settled(load(tmp_path, {"model.base": None, "model.preset": preset, "train.method": method}))
    assert found.train.learning_rate == rate
    assert found.base.is_large == large
    assert found.train.generated_rows == 1 and found.evaluate.retrieval.base_lengths == []
    assert found.train.max_steps == (100 if large else 500)


def test_a_base_of_unknown_size_is_treated_as_large(tmp_path: Path) -> None:
    base = read_base(tmp_path)
    assert base.parameters is None and base.is_large


@pytest.mark.parametrize("config", ["[]", "{", '{"hidden_size": "x"}', '{"num_layers": -1}', '{"model_type": "llama"}'])
def test_a_base_with_a_wrong_config_is_told_at_once(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json"):
        read_base(tmp_path)


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_nothing_behind_it_knows_auto(tmp_path: Path, kind: DeviceKind) -> None:
    found = released(tmp_path, "chatglm3-6b", kind)
    assert unsettled(found) == set()
    assert unsettled(load_params(ROOT / "params.yaml")) <= found.origins.keys() | {"tokenize.threads"}
    elsewhere = {
        "train.device",
        "train.dtype",
        "evaluate.device",
        "evaluate.dtype",
        "tokenize.template",
        "model.family",
    }
    assert {key for key, value in flatten(found).items() if value == "auto"} == elsewhere


def test_the_printed_table_has_every_value_with_its_origin(tmp_path: Path) -> None:
    found = released(tmp_path, "chatglm2-6b", "cpu", {"train.method": "qlora"}, "train: {epochs: 1}")
    lines = {line.split()[0]: line.split(None, 1)[1] for line in found.lines("model", "train", "evaluate")}
    assert lines.keys() == found.origins.keys()
    assert lines["train.epochs"].split(None, 1) == ["1", "the base's tuning.yaml"]
    assert lines["train.optimizer"].split(None, 1) == ["adamw", "default"]
    assert lines["model.rope.type"].split(None, 1) == ["null", "as the checkpoint has it"]
    assert max(map(len, found.lines("train"))) <= 100


def test_metrics_are_numbers_and_texts(tmp_path: Path) -> None:
    found = released(tmp_path, "chatglm2-6b", "cpu", advice="train: {curriculum: [{until: 0.5, max_tokens: 9}]}")
    metrics = found.metrics("model", "train")
    assert len(metrics["base_tuning_sha256"]) == 64
    assert {type(value) for value in metrics["settled"].values()} <= {int, float, str}
    assert metrics["settled"]["train.curriculum"] == "[{until: 0.5, max_tokens: 9}]"
    assert metrics["settled"]["train.max_steps"] == 100
    assert not [key for key in metrics["settled"] if key.startswith("evaluate")]


def test_evaluate_settles_by_what_train_recorded(tmp_path: Path) -> None:
    advice = "{model: {rope: {type: yarn, factor: 2}}, evaluate: {generation: {rows: 3}, retrieval: {contexts: 9}}}"
    trained = released(tmp_path, "chatglm2-6b", "cuda", advice=advice)
    assert read_tuning_record(tmp_path) is None
    trained.write_record(tmp_path)
    record = read_tuning_record(tmp_path)
    assert record is not None and (record.model, record.train, record.base) == (
        trained.model,
        trained.train,
        trained.base,
    )
    # The params may name something else by now, and the base's folder may be gone.
    params = load(tmp_path, {"model.base": None, "evaluate.retrieval.contexts": 2})
    found = settle(params, record.base, "cpu", record)
    assert found.model == trained.model and found.train == trained.train
    assert (found.evaluate.generation.rows, found.evaluate.retrieval.contexts) == (3, 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"model": {}}',
        "null",
        '{"model": {}, "train": {"optimizer": "auto"}, "base": {}}',
        '{"model": {}, "train": {}, "base": {"advice": {"train": {"seed": 1}}}}',
        '{"model": {}, "train": {}, "base": {"advice": {"train": 5}}}',
    ],
)
def test_a_record_that_train_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settled.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"settled\.json"):
        read_tuning_record(tmp_path)
