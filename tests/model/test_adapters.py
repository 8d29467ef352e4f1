"""Adapters on disk: the same network after loading, and never on another base."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glm2core.errors import UserError
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.model.loading import parameter_count
from glm2core.model.rope import linear_rope, plain_rope
from glm2core.params import ModelParams
from glm2core.training.methods import Prepared, prepare
from tests.training.conftest import tiny_model, train_params

IDS = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))
SCALED = {"type": "linear", "factor": 4.0}


def tuned(folder: Path, method: str, bits: int | None, base: str | None, **model: object) -> Prepared:
    """Prepare, disturb the trainable weights, and save."""
    result = prepare(
        ModelParams.model_validate({"base": base, "rope": SCALED} | model),
        train_params(method=method, quantization_bits=bits),
        vocab_size=320,
        dtype=torch.float32,
        device=torch.device("cpu"),
        work_folder=folder.parent / "work",
        notice=lambda _: None,
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in result.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    result.save(folder)
    return result


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load(folder: Path, **options: object) -> torch.nn.Module:
    return load_tuned(folder, dtype=torch.float32, notice=lambda _: None, **options)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a base in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    tiny_model().save_pretrained(tmp_path / "models/base")
    return tmp_path


@pytest.mark.parametrize(
    ("method", "bits"), [("full", None), ("lora", None), ("qlora", 4), ("qlora", 8), ("ptuning", None), ("ptuning", 4)]
)
@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_tuned_folder_gives_the_network_that_was_saved(
    root: Path, method: str, bits: int | None, from_scratch: bool
) -> None:
    result = tuned(root / "models/tuned", method, bits, None if from_scratch else "models/base")
    shutil.rmtree(root / "work", ignore_errors=True)  # nothing may depend on the folder that training used
    torch.testing.assert_close(logits(load(root / "models/tuned")), logits(result.model))
    assert (root / "models/tuned/base").is_dir() == (from_scratch and method != "full")


def test_the_base_is_found_from_another_workspace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tuned(root / "models/tuned", "lora", None, "models/base")
    assert json.loads((root / "models/tuned/base.json").read_text())["path"] == "models/base"
    (root / "temporary").mkdir()
    monkeypatch.chdir(root / "temporary")
    assert not Path("models/base").exists()
    torch.testing.assert_close(logits(load(root / "models/tuned")), logits(result.model))


def test_another_base_is_refused(root: Path) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(root / "models/base")
    with pytest.raises(UserError, match="was trained on a different base"):
        load(root / "models/tuned")
    shutil.rmtree(root / "models/base")
    with pytest.raises(UserError, match=r"is an adapter on models/base, but .* does not exist"):
        load(root / "models/tuned")


def test_a_base_that_was_moved_is_named(root: Path) -> None:
    result = tuned(root / "models/tuned", "lora", None, "models/base")
    (root / "models/base").rename(root / "elsewhere")
    with pytest.raises(UserError, match="name their folder with --base"):
        load(root / "models/tuned")
    moved = root / "elsewhere"
    torch.testing.assert_close(logits(load(root / "models/tuned", base=moved)), logits(result.model))
    assert network_parameters(root / "models/tuned", moved) == parameter_count(tiny_model().config)
    tiny_model(num_layers=1).save_pretrained(root / "another")
    with pytest.raises(UserError, match="was trained on a different base"):
        load(root / "models/tuned", base=root / "another")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        load(root / "models/tuned", base=root / "nowhere")
    with pytest.raises(UserError, match=r"elsewhere holds a network.*leave out --base"):
        load(moved, base=moved)


def test_an_adapter_without_its_reference_is_refused(root: Path) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    (root / "models/tuned/base.json").unlink()
    with pytest.raises(UserError, match=r"no base\.json"):
        load(root / "models/tuned")
    (root / "models/tuned/base.json").write_text('{"path": 3}')
    with pytest.raises(UserError, match=r"base\.json: path must be text or null; got 3"):
        load(root / "models/tuned")


def test_a_quantized_adapter_loads_on_its_unquantized_base_to_be_merged(root: Path) -> None:
    tuned(root / "models/tuned", "qlora", 4, "models/base")
    model = load(root / "models/tuned", quantized=False)
    assert not getattr(model.get_base_model(), "is_loaded_in_4bit", False)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(load(root / "models/tuned", quantized=False)))


def test_the_scaling_travels_with_the_adapter(root: Path) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    assert load(root / "models/tuned").get_base_model().config.rope_parameters["factor"] == 4.0


@pytest.mark.parametrize(
    ("rope_type", "factor", "expected"), [("linear", 8.0, linear_rope(8)), (None, 1.0, plain_rope())]
)
def test_an_adapter_of_an_older_version_loads(
    root: Path, rope_type: str | None, factor: float, expected: dict[str, object]
) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    file = root / "models/tuned/base.json"
    values = json.loads(file.read_text())
    del values["rope"]
    values |= {"rope_type": rope_type, "rope_factor": factor, "rope_unit": 2048}
    file.write_text(json.dumps(values))
    assert load(root / "models/tuned").get_base_model().config.rope_parameters == expected


def adapter_file(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    file = folder / "adapter_model.safetensors"
    return file, load_file(file)


@pytest.mark.parametrize("method", ["lora", "ptuning"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, name: tensors.pop(name), "missing {name}"),
        (lambda tensors, name: tensors.update({name + "x": tensors.pop(name)}), "missing {name}; unexpected {name}x"),
        (
            lambda tensors, name: tensors.update({"base_model.model.evil": torch.ones(3)}),
            "unexpected base_model.model.evil",
        ),
        (lambda tensors, name: tensors.update({name: tensors[name][:1].clone()}), "{name} is [1, "),
        (lambda tensors, name: tensors.update({name: tensors[name].flatten()}), "{name} is ["),
        (lambda tensors, name: tensors.update({name: tensors[name] * float("nan")}), "hold NaN or infinity"),
        (lambda tensors, name: tensors.clear(), "missing {name}"),
    ],
    ids=["missing", "misnamed", "surplus", "cut", "flat", "NaN", "none"],
)
def test_an_adapters_tensors_are_checked_as_a_networks(
    root: Path, method: str, change: Callable[[dict[str, torch.Tensor], str], object], said: str
) -> None:
    tuned(root / "models/tuned", method, None, "models/base")
    file, tensors = adapter_file(root / "models/tuned")
    name = sorted(tensors)[0]
    change(tensors, name)
    save_file(tensors, file)
    with pytest.raises(UserError, match=re.escape(said.format(name=name))):
        load(root / "models/tuned")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target_modules": "(a+)+$"}, "target_modules must be a list"),
        ({"target_modules": ["(.*)*(.*)*x"]}, "target_modules[0] must be one of query_key_value, dense"),
        ({"target_modules": ["dense"]}, "unexpected base_model.model.transformer.encoder.layers.0.mlp"),
        ({"rank_pattern": {"(x+x+)+y": 4}}, "rank_pattern must not be set"),
        ({"alpha_pattern": {"dense": 4}}, "alpha_pattern must not be set"),
        ({"use_dora": True, "bias": "all"}, "bias, use_dora must not be set"),
        ({"modules_to_save": ["embedding"]}, "modules_to_save must not be set"),
        ({"r": 10**9}, "r must be at most 65,536"),
        ({"r": 3}, "but should be [3, "),
        ({"lora_dropout": "x"}, "lora_dropout must be a number"),
        ({"peft_type": "XLORA"}, "peft_type must be one of LORA, PREFIX_TUNING"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type must be one of LORA, PREFIX_TUNING"),
        ({"peft_type": "PREFIX_TUNING"}, "num_virtual_tokens must be set"),
        ({"task_type": "SEQ_CLS"}, "task_type must be one of null, CAUSAL_LM"),
    ],
    ids=str,
)
def test_what_this_project_does_not_write_is_refused(root: Path, values: dict[str, object], said: str) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    file = root / "models/tuned/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(UserError) as raised:
        load(root / "models/tuned")
    assert said in str(raised.value)


def test_other_keys_never_reach_peft(root: Path) -> None:
    result = tuned(root / "models/tuned", "lora", None, "models/base")
    file = root / "models/tuned/adapter_config.json"
    others = {"megatron_core": "evil", "auto_mapping": {"parent_library": "evil"}, "loftq_config": {"x": 1}, "new": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | {**others, "base_model_name_or_path": "evil/repo"}))
    loaded = load(root / "models/tuned")
    torch.testing.assert_close(logits(loaded), logits(result.model))
    assert loaded.peft_config["default"].megatron_core == "megatron.core"


def test_weights_of_an_adapter_may_be_a_bin_and_must_be_there(root: Path) -> None:
    result = tuned(root / "models/tuned", "lora", None, "models/base")
    file, tensors = adapter_file(root / "models/tuned")
    file.unlink()
    with pytest.raises(UserError, match=r"an adapter without its weights: there is no adapter_model\.safetensors or"):
        load(root / "models/tuned")
    torch.save(tensors, root / "models/tuned/adapter_model.bin")
    torch.testing.assert_close(logits(load(root / "models/tuned")), logits(result.model))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"path": "~nosuchuser/x"}, "path is not a valid path here"),
        ({"path": "x" * 300}, "path is not a valid path here"),
        ({"path": "x" * 5000}, "path must have at most 4096 characters"),
        ({"path": ""}, "path must not be empty"),
        ({"path": "a\0b\x1b[31m"}, r"does not exist"),
        ({"path": "/dev/zero"}, "does not exist"),
        ({"path": "/"}, "holds no config.json"),
        ({"fingerprint": "x"}, "fingerprint must be of the pattern"),
        ({"bits": 3}, "bits must be one of null, 4, 8"),
        ({"family": "evil"}, "family must be one of auto, chatglm2, chatglm3"),
        ({"rope": {"type": "evil"}}, "rope.type must be one of"),
        ({"rope": {"type": "linear", "factor": -1}}, "rope.factor must be above 0"),
        ({"rope": {"type": "linear", "factor": 1e300}}, "rope.factor must be at most"),
        ({"rope_type": "linear", "rope_factor": "x"}, "rope.factor must be a number"),
    ],
    ids=str,
)
def test_a_wrong_reference_is_a_sentence(root: Path, values: dict[str, object], said: str) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    file = root / "models/tuned/base.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(UserError) as raised:
        load(root / "models/tuned")
    assert said in str(raised.value) and "\x1b" not in str(raised.value)


def test_rslora_scales_by_the_root_of_the_rank_and_stays_in_the_file(root: Path) -> None:
    for name, rslora in (("plain", False), ("root", True)):
        folder = root / "models" / name
        params = train_params(method="lora", lora={"rank": 4, "dropout": 0.0, "rslora": rslora})
        made = prepare(
            ModelParams(base="models/base"),
            params,
            vocab_size=320,
            dtype=torch.float32,
            device=torch.device("cpu"),
            work_folder=root / "work",
            notice=lambda _: None,
        )
        made.save(folder)
        assert json.loads((folder / "adapter_config.json").read_text())["use_rslora"] is rslora
        scale = next(m.scaling["default"] for m in load(folder).modules() if hasattr(m, "scaling"))
        assert scale == (32 / 4**0.5 if rslora else 32 / 4)
