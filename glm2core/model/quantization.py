"""4-bit and 8-bit weights with bitsandbytes."""

from typing import Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from glm2core.hardware import product_dtype
from glm2core.model.linear import Linear

# The output layer keeps its precision, because it is only a twelfth of the weights but decides every token.
_FULL_PRECISION = ["output_layer"]


def quantization_config(
    bits: Literal[4, 8], dtype: torch.dtype, device: str | torch.device = "cpu"
) -> BitsAndBytesConfig:
    """The configuration for bitsandbytes.

    4 bits mean nf4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314); 8 bits mean LLM.int8
    (arXiv:2208.07339).

    Args:
        bits: number of bits per weight in the blocks' linear layers. The embedding, the norms and the output layer are
            not quantized.
        dtype: dtype of all other weights. 4-bit layers multiply in this dtype if `device` computes in it, and otherwise
            in fp32. For 8-bit layers there is no such setting, because bitsandbytes multiplies in the input's dtype.
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_FULL_PRECISION)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=product_dtype(dtype, torch.device(device)),
        llm_int8_skip_modules=_FULL_PRECISION,
    )


def make_quantizable(model: nn.Module) -> None:
    """Replace each `Linear` that will be quantized with nn.Linear, because transformers does not replace subclasses."""
    for name, module in model.named_modules():
        if type(module) is Linear and name.rpartition(".")[2] not in _FULL_PRECISION:
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            model.set_submodule(name, plain)


def keep_frozen_weights(model: nn.Module) -> None:
    """Keep a model's 4-bit linear layers in train mode.

    On CPUs with AVX512-BF16, a forward pass in eval mode without gradients repacks the frozen weights in place. The
    next training step then fails ("a view of a leaf Variable that requires grad"). The mode affects nothing else in
    these layers.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    from bitsandbytes.nn import Linear4bit  # importing takes a second, and only 4-bit models need it

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.training = True
