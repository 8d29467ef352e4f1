"""Adapters on disk: the same network after loading, and never on another base."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from glm2core.errors import UserError
from glm2core.model.adapters import base_folder, load_tuned, network_parameters
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
    with pytest.raises(UserError, match="was trained on another base"):
        load(root / "models/tuned")
    shutil.rmtree(root / "models/base")
    with pytest.raises(UserError, match=r"is an adapter on models/base, and .* does not exist"):
        load(root / "models/tuned")


def test_a_base_that_was_moved_is_named(root: Path) -> None:
    result = tuned(root / "models/tuned", "lora", None, "models/base")
    (root / "models/base").rename(root / "elsewhere")
    with pytest.raises(UserError, match="name the folder that holds them with --base"):
        load(root / "models/tuned")
    moved = root / "elsewhere"
    torch.testing.assert_close(logits(load(root / "models/tuned", moved_base=moved)), logits(result.model))
    assert network_parameters(root / "models/tuned", moved) == parameter_count(tiny_model().config)
    tiny_model(num_layers=1).save_pretrained(root / "another")
    with pytest.raises(UserError, match="was trained on another base"):
        load(root / "models/tuned", moved_base=root / "another")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        load(root / "models/tuned", moved_base=root / "nowhere")
    for ask in (load, network_parameters, base_folder):
        with pytest.raises(UserError, match=r"elsewhere holds full weights\. Leave --base out"):
            ask(moved, moved_base=moved)


def test_an_adapter_without_its_reference_is_refused(root: Path) -> None:
    tuned(root / "models/tuned", "lora", None, "models/base")
    (root / "models/tuned/base.json").unlink()
    with pytest.raises(UserError, match=r"no base\.json"):
        load(root / "models/tuned")
    (root / "models/tuned/base.json").write_text('{"path": 3}')
    with pytest.raises(UserError, match=r"base\.json cannot be read"):
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
