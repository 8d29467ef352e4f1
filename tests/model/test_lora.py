"""LoRA in one function: peft's outputs, gradients, parameters and files, in every kind of linear."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.testing import assert_close

from glm2core.hardware import computes_in
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.linear import Linear
from glm2core.model.loading import load_model
from glm2core.model.lora import OneFunctionLora, add_in_one_function
from tests.model.released_layout import released_config, write_checkpoint

LINEARS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
IDS = torch.randint(3, 320, (2, 30), generator=torch.Generator().manual_seed(0))
FP32 = {"rtol": 1e-4, "atol": 2e-5}
KINDS = [(bits, dtype) for bits in (None, 4, 8) for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("base")
    write_checkpoint(made, released_config("chatglm2-6b", ffn_hidden_size=192))
    return made


def of_peft(folder: Path, bits: int | None, dtype: torch.dtype, **options: object) -> PeftModel:
    """A network with an adapter made by peft, in which neither side of an update is zero."""
    network = load_model(folder, dtype=dtype, bits=bits, notice=lambda _: None).requires_grad_(False)
    torch.manual_seed(1)
    config = {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "init_lora_weights": False} | options
    model = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    return model


def both(folder: Path, bits: int | None, dtype: torch.dtype, **options: object) -> tuple[PeftModel, PeftModel]:
    """peft's network, and ours with the same weights."""
    theirs, ours = (of_peft(folder, bits, dtype, **options) for _ in range(2))
    add_in_one_function(ours)
    return theirs, ours


def learned(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    model.train().zero_grad()
    torch.manual_seed(2)  # of a dropout
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def assert_close_as_a_whole(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Each tensor within rounding by its norm: a single entry may be a difference of large ones."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).norm() / tensor.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.08), f"{name}: {error:.2e}"


@pytest.mark.parametrize(("bits", "dtype"), KINDS)
def test_outputs_and_gradients_are_those_of_peft(folder: Path, bits: int | None, dtype: torch.dtype) -> None:
    theirs, ours = both(folder, bits, dtype)
    (loss, gradients), (expected_loss, expected) = learned(ours), learned(theirs)
    assert len(gradients) == 2 * 3 * len(LINEARS)
    assert_close_as_a_whole(gradients, expected, dtype)
    assert_close_as_a_whole(
        {"loss": loss, "logits": logits(ours)}, {"loss": expected_loss, "logits": logits(theirs)}, dtype
    )


@pytest.mark.skipif(not computes_in(torch.bfloat16, torch.device("cpu")), reason="this CPU has no bfloat16 arithmetic")
def test_in_bf16_a_layer_is_as_near_to_the_exact_values_as_that_of_peft() -> None:
    """Outputs and the inputs' gradients; the update's own products are rounded to bf16 here, where peft's are fp32."""
    torch.manual_seed(0)
    base = Linear(256, 384, bias=True).to(torch.bfloat16).requires_grad_(False)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], init_lora_weights=False)
    theirs = get_peft_model(nn.Sequential(base), config)
    for name, parameter in theirs.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    add_in_one_function(ours)
    rows, gradient = torch.randn(64, 256).to(torch.bfloat16), torch.randn(64, 384).to(torch.bfloat16)

    def values(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        inputs = rows.to(dtype).requires_grad_()
        weights = [p for p in model.parameters() if p.requires_grad]
        result = model(inputs)
        return [result.detach(), *torch.autograd.grad(result, [inputs, *weights], gradient.to(dtype))]

    true = values(exact, torch.float64)
    errors = [
        [float((v.double() - t).norm() / t.norm()) for v, t in zip(values(model, torch.bfloat16), true, strict=True)]
        for model in (ours, theirs)
    ]
    for own, of_peft in zip(errors[0][:2], errors[1][:2], strict=True):
        assert own < 1.5 * of_peft
    assert max(errors[0][2:]) < 2**-8  # of the update matrices


def test_weights_of_a_device_without_their_arithmetic_are_multiplied_in_fp32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", "avx2")
    theirs, ours = both(folder, None, torch.bfloat16)
    (loss, gradients), (expected_loss, expected) = learned(ours), learned(theirs)
    assert_close(loss, expected_loss, **FP32)
    assert_close_as_a_whole(gradients, expected, torch.float32)


def test_gradients_are_those_of_differences() -> None:
    """In fp64, against the function's own values: plain, and behind a SwiGLU."""
    base = Linear(6, 5, bias=True).double().requires_grad_(False)
    model = nn.Sequential(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).double()
    add_in_one_function(adapted)
    (layer,) = (module for module in adapted.modules() if isinstance(module, OneFunctionLora))
    names = ("lora_A.default.weight", "lora_B.default.weight")
    weights = tuple(layer.get_parameter(name).detach().clone().requires_grad_() for name in names)

    def plain(rows: Tensor, *matrices: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, matrices, strict=True)), (rows,))

    def gated(rows: Tensor, *matrices: Tensor) -> Tensor:
        values = {f"layer.{name}": matrix for name, matrix in zip(names, matrices, strict=True)}
        return torch.func.functional_call(_OfGates(layer), values, (rows,))

    assert torch.autograd.gradcheck(plain, (torch.randn(2, 3, 6).double().requires_grad_(), *weights))
    assert torch.autograd.gradcheck(gated, (torch.randn(2, 3, 12).double().requires_grad_(), *weights))


class _OfGates(nn.Module):
    def __init__(self, layer: OneFunctionLora) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer.of_gates(rows)


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (None, {"lora_dropout": 0.3}),
        (4, {"lora_dropout": 0.3}),
        (None, {"use_dora": True}),
        (None, {"lora_bias": True, "target_modules": ["query_key_value"]}),
    ],
    ids=str,
)
def test_what_is_not_plain_takes_the_path_of_peft(folder: Path, bits: int | None, options: dict[str, object]) -> None:
    theirs, ours = both(folder, bits, torch.float32, **options)
    (loss, gradients), (expected_loss, expected) = learned(ours), learned(theirs)
    assert loss.equal(expected_loss)
    assert all(gradients[name].equal(gradient) for name, gradient in expected.items())


def test_a_dropout_drops_nothing_outside_training(folder: Path) -> None:
    """Then the function is ours again."""
    theirs, ours = both(folder, None, torch.float32, lora_dropout=0.3)
    dropping, plain = learned(ours)[0], both(folder, None, torch.float32)[1]
    assert not torch.isclose(dropping, learned(plain)[0], rtol=1e-4)
    assert logits(ours).equal(logits(plain))
    assert_close(logits(ours), logits(theirs), **FP32)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_network_beneath_is_there_when_the_adapter_is_off(folder: Path, bits: int | None) -> None:
    _, ours = both(folder, bits, torch.float32)
    alone = load_model(folder, dtype=torch.float32, bits=bits, notice=lambda _: None)
    tuned = logits(ours)
    with ours.disable_adapter():
        assert logits(ours).equal(logits(alone))
    assert logits(ours).equal(tuned)
    assert not torch.allclose(tuned, logits(alone), rtol=1e-3)


def test_merging_gives_the_same_network_and_can_be_undone(folder: Path) -> None:
    _, ours = both(folder, None, torch.float32)
    tuned = logits(ours)
    ours.merge_adapter()
    assert_close(logits(ours), tuned, **FP32)
    ours.unmerge_adapter()
    assert_close(logits(ours), tuned, **FP32)
    merged = ours.merge_and_unload()
    assert isinstance(merged, ChatGLM2ForCausalLM)
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    assert_close(logits(merged), tuned, **FP32)


@pytest.mark.parametrize("bits", [None, 4])
def test_files_are_those_of_peft_and_load_in_plain_peft(folder: Path, bits: int | None, tmp_path: Path) -> None:
    theirs, ours = both(folder, bits, torch.float32)
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    network = load_model(folder, dtype=torch.float32, bits=bits, notice=lambda _: None)
    plain = PeftModel.from_pretrained(network, str(tmp_path / "ours"))
    assert not any(isinstance(module, OneFunctionLora) for module in plain.modules())
    assert_close(logits(plain), logits(ours), **FP32)


def test_parameters_have_the_names_and_values_of_peft(folder: Path) -> None:
    theirs, ours = both(folder, None, torch.bfloat16)
    assert sum(isinstance(module, OneFunctionLora) for module in ours.modules()) == 3 * len(LINEARS)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert [n for n, p in ours.named_parameters() if p.requires_grad] == [
        n for n, p in theirs.named_parameters() if p.requires_grad
    ]
    assert copy.deepcopy(ours).state_dict().keys() == expected.keys()


def test_an_input_is_kept_once_and_no_output_of_swiglu(folder: Path) -> None:
    """peft keeps an fp32 copy of every linear's input where activations are in bf16."""

    def kept(model: nn.Module) -> int:
        total, seen = 0, []
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            place = tensor.untyped_storage()
            if place.data_ptr() not in own and all(place.data_ptr() != other.data_ptr() for other in seen):
                total += place.nbytes()
                seen.append(place)
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(input_ids=IDS, labels=IDS)
        return total

    theirs, ours = both(folder, None, torch.bfloat16)
    config = ours.get_base_model().config
    width = 2 if computes_in(torch.bfloat16, torch.device("cpu")) else 4  # bytes of an activation
    # Bytes of a token: three inputs in the activations' dtype, not always fp32, and nothing of SwiGLU's output
    saved = config.num_layers * IDS.numel() * ((4 - width) * 3 * config.hidden_size + 4 * config.ffn_hidden_size)
    updates = [module.lora_B["default"].weight for module in ours.modules() if isinstance(module, OneFunctionLora)]
    saved += (4 - width) * IDS.numel() * sum(upper.shape[1] for upper in updates)  # the products with A
    saved -= width * sum(upper.numel() for upper in updates)  # B in the other layout
    assert kept(theirs) - kept(ours) == pytest.approx(saved, rel=0.06)


def test_several_adapters_take_the_path_of_peft(folder: Path) -> None:
    models = both(folder, None, torch.float32)
    for model in models:
        torch.manual_seed(4)
        model.add_adapter("second", LoraConfig(r=2, target_modules=LINEARS, init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    theirs, ours = models
    assert logits(ours).equal(logits(theirs))
    for model in models:
        model.set_adapter("second")
    assert_close(logits(ours), logits(theirs), **FP32)
