"""Tensors one at a time: packed releases, and an adapter's update."""

import json
from pathlib import Path

import pytest
import torch

from glm2core.errors import UserError
from glm2core.model.loading import load_model
from glm2core.model.tensors import unpacked
from tests.model.released_layout import released_config, released_weights, write_checkpoint

LINEARS = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def silent(_: str) -> None:
    pass


def packed(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like the released quantization: one scale per row; of two columns in a byte the even one is the upper."""
    scale = weight.float().abs().max(-1).values / (2 ** (bits - 1) - 1)
    integers = (weight.float() / scale[:, None]).round().to(torch.int8)
    if bits == 4:
        integers = (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)
    return integers, scale.half()


def packed_folder(folder: Path, bits: int, layout: str) -> dict[str, torch.Tensor]:
    """Write a packed release; returns the half-precision weights that it was made from."""
    config = released_config("chatglm2-6b", quantization_bit=bits)
    weights = released_weights(config)
    stored = dict(weights)
    for name in [name for name in weights if name.endswith(LINEARS)]:
        stored[name], stored[f"{name}_scale"] = packed(weights[name], bits)
    write_checkpoint(folder, config, stored, layout=layout)
    return weights


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize(("bits", "step"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_release_is_unpacked(bits: int, step: int, layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = packed_folder(tmp_path, bits, layout)
    loaded = load_model(tmp_path, dtype=dtype, notice=silent).state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {dtype}
    for name, tensor in loaded.items():
        wide = weights[name].float()
        if name.endswith(LINEARS):  # half a step of its row, and the rounding of scale and dtype
            allowed = wide.abs().max(-1, keepdim=True).values * (0.5 / step + 2**-8)
            assert ((tensor.float() - wide).abs() <= allowed).all(), name
            assert not tensor.float().equal(wide), name
        else:
            assert tensor.equal(weights[name].to(dtype)), name


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_base_can_be_quantized_again(bits: int, tmp_path: Path) -> None:
    packed_folder(tmp_path, 4, "bin")
    model = load_model(tmp_path, dtype=torch.float32, bits=bits, notice=silent)
    assert model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight.dtype in (torch.uint8, torch.int8)
    assert model(input_ids=torch.arange(5)[None]).logits.isfinite().all()


def test_the_order_of_nibbles_and_signs() -> None:
    found = unpacked(torch.tensor([[0x1F, -0x79]], dtype=torch.int8), torch.tensor([2.0]), 4)
    assert found.tolist() == [[2.0, -2.0, -16.0, 14.0]]


def test_another_width_and_a_wrong_tensor_are_named(tmp_path: Path) -> None:
    packed_folder(tmp_path, 4, "bin")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_bit": 3}))
    with pytest.raises(UserError, match="quantization_bit is 3, but released weights are packed to 4 or 8 bits"):
        load_model(tmp_path, dtype=torch.float32, notice=silent)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_bit": 8}))
    with pytest.raises(UserError, match=rf"{tmp_path}: the weights do not fit.* should be \[128, 64\]"):
        load_model(tmp_path, dtype=torch.float32, notice=silent)
