"""What a training run will need of memory and disk, known before it starts.

Weights, gradients and optimizer are counted. What a block keeps for its backward is taken from the
network itself, run on torch's meta device, where tensors have shapes and no content, so that the
figure stays right when the network changes. `B` rows, `T` tokens, `V` vocabulary.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from glm2core.model.config import ChatGLM2Config
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.params import TrainParams
from glm2core.training.methods import adapt

GIB = 1 << 30

# Resident before anything is loaded: interpreter and libraries, or the CUDA context. Measured.
_LIBRARIES = {"cpu": 0.6 * GIB, "cuda": 0.5 * GIB}
# fp32 copies of a block of 2 M elements in RoundingAdafactor: weight, gradient, update and their squares.
_ADAFACTOR_SCRATCH = 6 * 4 * (1 << 21)
_ADAFACTOR_BLOCK = 1 << 21
_LOSS_CHUNK = 1 << 25  # logits alive at once, see model/loss.py
# Bytes a weight of a quantized linear with its scales, and of AdamW's two moments of one parameter.
_QUANTIZED = {4: 0.52, 8: 1.0}
_MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.1}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the fullest moment of a training step.

    Args:
        weights: of the network, adapter included.
        gradients: all of them (memory normal), or the largest one (low).
        optimizer: its state, and the fp32 copies that it works on.
        activations: what forward keeps for backward, in all blocks.
        loss: logits and their gradient, on supervised positions.
        libraries: before anything is loaded.
        loading: while weights are read from files: twice the weights, half of that mapped files,
            which the system takes back when it needs the room. 0 = from scratch.
        accumulates: gradients stay while the next batch runs forward.
        output_gradient: of the output layer, which is there first; 0 where it is frozen.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    libraries: float
    loading: float
    accumulates: bool
    output_gradient: float

    @property
    def total(self) -> float:
        """What must fit: all that is alive at the fullest moment.

        Backward frees activations while it makes gradients, so the two are never there in full together
        unless gradients accumulate.
        """
        start_of_backward = self.activations + self.loss + self.output_gradient
        if self.accumulates:
            start_of_backward += self.gradients
        return self.libraries + self.weights + self.optimizer + max(start_of_backward, self.gradients)

    @property
    def resident(self) -> float:
        """Peak of resident memory, as the system shows it: mapped files while loading count."""
        return max(self.total, self.libraries + self.loading)


def training_memory(
    config: ChatGLM2Config,
    params: TrainParams,
    *,
    dtype: torch.dtype,
    device: str,
    row_tokens: int,
    supervised: float,
    from_files: bool,
) -> TrainingMemory:
    """Estimate one process's training memory.

    Args:
        config: of the network, without a prefix.
        dtype: of the weights.
        device: cpu or cuda.
        row_tokens: of the longest row, which goes alone when it is over `params.batch_tokens`.
        supervised: share of the tokens that are supervised.
        from_files: the weights are loaded, not made from scratch.
    """
    model = _on_meta(config, params, dtype)
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = _weight_bytes(model, params)
    gradients = [p.numel() * p.element_size() for p in trainable]
    tokens = max(params.batch_tokens, row_tokens)
    output = _output_layer(model).weight
    return TrainingMemory(
        weights=weights,
        gradients=max(gradients) if params.memory == "low" else sum(gradients),
        optimizer=_optimizer_bytes(trainable, params),
        activations=_activation_bytes(config, params, dtype, rows=max(1, tokens // row_tokens), row_tokens=row_tokens),
        loss=_loss_bytes(config.padded_vocab_size, round(tokens * supervised), dtype),
        libraries=_LIBRARIES[device],
        loading=2 * weights if from_files or params.method != "full" else 0.0,
        accumulates=params.gradient_accumulation_steps > 1,
        output_gradient=output.numel() * output.element_size() if output.requires_grad else 0.0,
    )


def _on_meta(config: ChatGLM2Config, params: TrainParams, dtype: torch.dtype) -> nn.Module:
    """The network as the method tunes it, without content."""
    config = copy.deepcopy(config)
    if params.method == "ptuning":  # the network's own prefix: peft's needs content
        config.pre_seq_len = params.prefix.length
    with torch.device("meta"):
        network: nn.Module = ChatGLM2ForCausalLM(config).to(dtype).train()
        if params.method in ("lora", "qlora"):
            return adapt(cast(Any, network), params.method, params.lora, params.prefix)
    if params.method == "ptuning":
        network.requires_grad_(False)
        cast(Any, network).transformer.prefix_encoder.float().requires_grad_(True)
    return network


def _network(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _output_layer(model: nn.Module) -> nn.Linear:
    return cast(nn.Linear, _network(model).transformer.output_layer)


def _weight_bytes(model: nn.Module, params: TrainParams) -> float:
    bits = params.bits
    total = 0.0
    for name, parameter in model.named_parameters():
        quantized = bits is not None and ".layers." in name and parameter.dim() > 1 and not parameter.requires_grad
        total += parameter.numel() * (_QUANTIZED[bits] if quantized and bits else parameter.element_size())
    return total


def _optimizer_bytes(trainable: list[nn.Parameter], params: TrainParams) -> float:
    if params.optimizer == "adafactor":
        return _ADAFACTOR_SCRATCH + sum(4.0 * _factored(p) for p in trainable)
    # fp32 master weights and their gradients, for parameters in half precision
    masters = sum(8 * p.numel() for p in trainable if p.element_size() < 4)
    return masters + _MOMENTS[params.optimizer] * sum(p.numel() for p in trainable)


def _factored(parameter: nn.Parameter) -> int:
    """Elements of Adafactor's second moment: a row and a column sum for each block of a matrix."""
    if parameter.dim() < 2:
        return parameter.numel()
    rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
    return rows + columns * -(-parameter.numel() // _ADAFACTOR_BLOCK)


def _activation_bytes(
    config: ChatGLM2Config, params: TrainParams, dtype: torch.dtype, *, rows: int, row_tokens: int
) -> float:
    """What forward keeps in all blocks: all of it, or with checkpointing their inputs and one block's."""
    shallow, deep = (_kept(config, params, dtype, layers, rows, row_tokens) for layers in (1, 2))
    block = deep - shallow
    if not (params.gradient_checkpointing or params.memory == "low"):
        return shallow + (config.num_layers - 1) * block
    inputs = config.num_layers * rows * row_tokens * config.hidden_size * dtype.itemsize
    return shallow + inputs


def _kept(
    config: ChatGLM2Config, params: TrainParams, dtype: torch.dtype, layers: int, rows: int, row_tokens: int
) -> int:
    """Bytes that forward keeps for backward in a network of `layers` blocks."""
    config = copy.deepcopy(config)
    config.num_layers = layers
    model = _on_meta(config, params, dtype)
    kept: dict[int, int] = {}
    storages = []  # kept alive, so that an address stands for one storage
    own = {_address(p) for p in model.parameters()}

    def remember(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            storages.append(tensor.untyped_storage())
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(rows, row_tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), _FusedAttention():
        _network(model).transformer(input_ids=ids, use_cache=False)
    return sum(kept.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _loss_bytes(vocabulary: int, supervised: int, dtype: torch.dtype) -> float:
    """Log-probabilities and their gradient in fp32, and the gradient in the network's dtype, for a chunk at a time."""
    chunk = min(supervised, max(1, _LOSS_CHUNK // vocabulary))
    return float(chunk * vocabulary * (8 + (dtype.itemsize if dtype.itemsize < 4 else 0)))


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch takes attention apart, scores and all; real devices run a fused kernel."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            causal = query.shape[2] == key.shape[2]
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(query, key, value, is_causal=causal)[0]
        return func(*args, **(kwargs or {}))
