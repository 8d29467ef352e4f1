"""Each method changes the right tensors, and frozen ones keep their bytes."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from glm2core.errors import UserError
from glm2core.hardware import computes_in
from glm2core.labels import IGNORED
from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from glm2core.model.adapters import adapt
from glm2core.model.presets import PRESETS
from glm2core.model.queries import with_scaled_queries
from glm2core.params import LoraParams, ModelParams, PrefixParams
from glm2core.training.methods import Prepared, multiply_adapters_in_half, prepare
from glm2core.training.optimizer import make_optimizer
from tests.training.conftest import tiny_model, train_params

METHODS = [
    ("full", None),
    ("lora", None),
    ("qlora", 4),
    ("qlora", 8),
    ("ptuning", None),
    ("ptuning", 4),
    ("ptuning", 8),
]
LAYERS = 2  # of `tiny_model`
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


def prepared(method: str, bits: int | None, base: Path | None, tmp_path: Path, **changes: object) -> Prepared:
    return prepare(
        ModelParams(base=None if base is None else str(base)),
        train_params(method=method, quantization_bits=bits, **changes),
        vocab_size=320,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        work_folder=tmp_path,
        notice=lambda _: None,
    )


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(24) < 12, IGNORED)}


def trained(model: nn.Module, steps: int) -> None:
    model.train()
    optimizer = make_optimizer(model, name="adamw", learning_rate=3e-3, weight_decay=0.0)
    for _ in range(steps):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def validated(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return model(**batch()).loss.item()


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Of its values: bitsandbytes widens a bias, which is exact."""
    tensor = tensor.detach().contiguous()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_what_moves_and_what_stays(method: str, bits: int | None, base: Path, tmp_path: Path) -> None:
    """Through train - validate - train: a validation pass repacks nf4 weights on some CPUs."""
    model = prepared(method, bits, base, tmp_path).model
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(_belongs(name, method) for name in trainable)
    before = {name: raw_bytes(p) for name, p in model.named_parameters()}
    trained(model, 3)
    first = validated(model)
    trained(model, 3)
    assert validated(model) < first
    moved = {name for name, p in model.named_parameters() if raw_bytes(p) != before[name]}
    assert moved == trainable


def _belongs(name: str, method: str) -> bool:
    parts = {"full": ("transformer.",), "lora": ("lora_A", "lora_B"), "ptuning": ("prompt_encoder",)}
    return any(part in name for part in parts["lora" if method == "qlora" else method])


@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_gradients_reach_every_trainable_tensor(method: str, bits: int | None, base: Path, tmp_path: Path) -> None:
    model = prepared(method, bits, base, tmp_path).model
    trained(model, 1)  # LoRA's B starts at zero, so A has no gradient in the first step
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.skipif(not computes_in(torch.bfloat16, torch.device("cpu")), reason="this CPU has no bfloat16 arithmetic")
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_adapters_multiplied_in_half_learn_the_same(bits: int | None, base: Path, tmp_path: Path) -> None:
    """Under autocast, as in a GPU run: no fp32 copy of an input, and the adapter itself stays fp32."""
    method = "lora" if bits is None else "qlora"
    plain, half = (prepared(method, bits, base, tmp_path).model for _ in range(2))
    multiply_adapters_in_half(half)
    kept: list[torch.dtype] = []
    for module in half.modules():
        if isinstance(module, nn.Dropout):  # in front of the update matrices
            module.register_forward_hook(lambda module, inputs, output: kept.append(output.dtype))
    # As in the loop: autocast only around the forward, since it keeps its copies of weights until it ends
    half.forward = torch.autocast("cpu", torch.bfloat16)(half.forward)
    for model in (plain, half):
        torch.manual_seed(0)  # dropout
        trained(model, 6)
    assert validated(half) == pytest.approx(validated(plain), rel=0.005)
    assert set(kept) == {torch.bfloat16}
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_adapters_sit_on_all_four_linears_of_the_quantized_network(
    bits: int | None, base: Path, tmp_path: Path
) -> None:
    """The original quantized after adapting, and lost its adapters."""
    model = prepared("qlora" if bits else "lora", bits, base, tmp_path).model
    assert isinstance(model, PeftModel)
    adapted = {n.removesuffix(".lora_A.default") for n, m in model.named_modules() if n.endswith("lora_A.default")}
    assert len(adapted) == 2 * len(LINEARS)
    assert {name.rpartition(".")[2] for name in adapted} == set(LINEARS)
    kinds = {None: "Linear", 4: "Linear4bit", 8: "Linear8bitLt"}
    for name in adapted:
        assert type(model.get_submodule(name).base_layer).__name__ == kinds[bits]
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_prefix_takes_up_no_position(base: Path, tmp_path: Path) -> None:
    """peft counts the prefix as positions; the released P-tuning v2 does not."""
    tuned = prepared("ptuning", None, base, tmp_path)
    model = tuned.model.eval()
    ids = batch()["input_ids"]
    own = ChatGLM2ForCausalLM.from_pretrained(base, dtype=torch.bfloat16).config
    own.pre_seq_len = 5
    native = ChatGLM2ForCausalLM(own).to(torch.bfloat16).eval()
    native.load_state_dict(
        {
            **tuned.network.state_dict(),
            "transformer.prefix_encoder.embedding.weight": model.prompt_encoder["default"].embedding.weight,
        }
    )
    with torch.no_grad():
        expected = native(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
        stretched = torch.arange(24).repeat(2, 1) * 3
        given = model(input_ids=ids, position_ids=stretched).logits
        torch.testing.assert_close(given, native(input_ids=ids, position_ids=stretched).logits)


@pytest.mark.parametrize(("method", "bits"), [("full", None), ("lora", None), ("qlora", 4), ("ptuning", None)])
def test_recomputed_blocks_give_the_same_gradients(method: str, bits: int | None, base: Path, tmp_path: Path) -> None:
    gradients = []
    for recompute, blocks in ((False, 0), (True, LAYERS), (1, 1)):
        lora = {"rank": 4, "dropout": 0.0}
        built = prepared(method, bits, base, tmp_path, gradient_checkpointing=recompute, lora=lora)
        flags = [layer.gradient_checkpointing for layer in built.network.transformer.encoder.layers]
        assert flags == [True] * blocks + [False] * (LAYERS - blocks)
        model = built.model
        model.train()
        model(**batch()).loss.backward()
        gradients.append({n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None})
    for recomputed in gradients[1:]:
        assert gradients[0].keys() == recomputed.keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_a_prefix_on_a_base_with_a_prefix_is_refused() -> None:
    with torch.device("meta"):
        network = ChatGLM2ForCausalLM(ChatGLM2Config(**{**PRESETS["tiny"], "pre_seq_len": 3}))
    with pytest.raises(UserError, match="already has a P-tuning prefix of 3"):
        adapt(network, "ptuning", LoraParams(), PrefixParams(length=4))


def test_saved_weights_have_scaled_queries_and_the_network_keeps_its_own(base: Path, tmp_path: Path) -> None:
    made = prepared("full", None, base, tmp_path, query_scale=1.5)
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    made.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    expected = with_scaled_queries(before, made.network.config, 1.5)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.network.state_dict().items())
