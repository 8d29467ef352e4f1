"""Estimates how much memory and disk space a training run needs, before the run starts.

The bytes of weights, gradients and optimizer state are counted. The bytes that a block keeps for the
backward pass are measured with the network itself on torch's meta device (shapes without content), so
that the figure stays right when the network changes.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glm2core.estimate.meta import kept_for_backward
from glm2core.files import resolve_path
from glm2core.hardware import product_dtype
from glm2core.model.adapters import adapt, multiplies_in_half
from glm2core.model.config import ChatGLM2Config, apply_rope
from glm2core.model.linear import WIDENED_ELEMENTS
from glm2core.model.loading import read_config
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.parameters import BLOCK_ELEMENTS, is_block_matrix
from glm2core.model.presets import preset_config
from glm2core.model.rope import RopeScaling
from glm2core.params import ModelParams, TrainParams

GIB = 1 << 30

# Memory in use before anything is loaded: interpreter and libraries (measured), or the CUDA context.
_LIBRARIES = {"cpu": 0.65 * GIB, "cuda": 0.5 * GIB}
# Measured: RoundingAdafactor's fp32 copies of a block, its random numbers, and what the allocator keeps of them.
_ADAFACTOR_SCRATCH = 0.05 * GIB
# Activations are multiplied by this for freed memory in glibc's heap (measured) or in torch's CUDA cache.
_ALLOCATOR = {"cpu": 1.25, "cuda": 1.05}
_LOSS_CHUNK = 1 << 25  # logits alive at once, see model/loss.py
# Bytes per weight of a quantized linear layer, including its scales, and bytes per parameter of AdamW's two moments.
_QUANTIZED = {4: 0.52, 8: 1.0}
_MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.1, "muon": 8.0}
_MUON_MOMENT = 4.0  # the single moment of a block's matrix


@dataclass(frozen=True)
class Workload:
    """A training run's network, rows and device.

    Args:
        config: the network's configuration without a P-tuning prefix.
        dtype: the dtype of the weights.
        device: cpu or cuda.
        row_tokens: number of tokens in the longest row. A row longer than `train.batch_tokens` is a batch of its own.
        supervised: share of the tokens that are supervised.
        from_files: whether the weights are loaded from files; if False, they are made from scratch.
        processes: number of processes that train together.
        sharded: whether each process keeps only 1/`processes` of the weights, the gradients and the optimizer state
            (FSDP).
    """

    config: ChatGLM2Config
    dtype: torch.dtype
    device: str
    row_tokens: int
    supervised: float
    from_files: bool
    processes: int = 1
    sharded: bool = False

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of activations and matrix multiplications.

        If the device computes in the weights' dtype, that dtype is returned; otherwise float32.
        """
        return product_dtype(self.dtype, torch.device(self.device))


@dataclass(frozen=True)
class TrainingMemory:
    """The bytes in use at the peak of a training step, by purpose.

    Args:
        weights: the network's weights, including its adapter.
        gradients: all gradients with `memory: normal`, or only the largest gradient with `memory: low`.
        optimizer: the optimizer's state and its fp32 copies.
        activations: what the forward pass keeps in all blocks for the backward pass, and one block's inner gradients.
        loss: the logits at supervised positions, and their gradient.
        libraries: what the process uses before anything is loaded.
        making: the full-precision weights that exist while a network is made from scratch, until an adapter's base is
            quantized.
        loading: what loading weights from files uses, which is twice the size of the weights, half of it in mapped
            files, which the system can reclaim; 0 = the network is made from scratch.
        mapped: weight files that stay mapped after their weights are quantized; the system can reclaim them, too.
        accumulates: whether gradients stay in memory during the next batch's forward pass.
        output_gradient: the output layer's gradient, which is computed first; 0 if the layer is frozen.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    libraries: float
    making: float
    loading: float
    mapped: float
    accumulates: bool
    output_gradient: float

    @property
    def total(self) -> float:
        """The bytes that must fit into memory, which is everything in use at the peak.

        The backward pass frees activations while it computes gradients. Activations and gradients therefore
        do not peak at the same time, unless gradients accumulate.
        """
        start_of_backward = self.activations + self.loss + self.output_gradient
        if self.accumulates:
            start_of_backward += self.gradients
        training = self.weights + self.optimizer + max(start_of_backward, self.gradients)
        return self.libraries + max(training, self.making)

    @property
    def resident(self) -> float:
        """Peak resident memory as the system shows it, including mapped files."""
        return max(self.total + self.mapped, self.libraries + self.loading)


@dataclass(frozen=True)
class TrainingDisk:
    """The bytes that a training run writes, by purpose.

    Args:
        base: the base's weights, which are stored if an adapter is trained on a network from scratch; otherwise 0.
        checkpoints: all checkpoints that exist at the same time, including the one that is being written.
        tuned: the result in models/tuned.
        cache: DVC's copy of the result (not needed if the file system can link files).
    """

    base: float
    checkpoints: float
    tuned: float
    cache: float

    @property
    def total(self) -> float:
        return self.base + self.checkpoints + self.tuned + self.cache


def network_config(params: ModelParams, vocab_size: int) -> ChatGLM2Config:
    """Return the configuration of the network that params describe.

    Args:
        vocab_size: number of tokens in the tokenizer; used only for a network from scratch.
    """
    if params.base is not None:
        config = read_config(resolve_path(params.base), family=params.family, notice=lambda sentence: None)
    else:
        config = preset_config(params.preset, vocab_size)
    apply_rope(config, RopeScaling.of(params.rope))
    return config


def training_memory(workload: Workload, params: TrainParams) -> TrainingMemory:
    """Estimate the memory that each training process needs."""
    model = _on_meta(workload, params)
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = _weight_bytes(model, params)
    gradients = [p.numel() * p.element_size() for p in trainable]
    tokens = max(params.batch_tokens, workload.row_tokens)
    output = _network(model).transformer.output_layer.weight
    shards = workload.processes if workload.sharded else 1
    copies = 2 if workload.processes > shards else 1  # DDP reduces gradients in buckets, which are copies
    return TrainingMemory(
        weights=weights / shards,
        gradients=max(gradients) if params.memory == "low" else copies * sum(gradients) / shards,
        optimizer=_optimizer_bytes(model, params) / shards + _unpacked_bytes(trainable, params, workload.device),
        activations=_ALLOCATOR[workload.device]
        * _activation_bytes(workload, params, rows=max(1, tokens // workload.row_tokens))
        + _widened_bytes(workload, model, params),
        loss=_loss_bytes(workload, round(tokens * workload.supervised)),
        libraries=_LIBRARIES[workload.device],
        making=0.0 if workload.from_files and shards == 1 else _bytes(model.parameters()),
        loading=2 * weights if workload.from_files or params.method != "full" else 0.0,
        mapped=_bytes(_quantized(model, params)) if workload.device == "cpu" else 0.0,
        accumulates=params.gradient_accumulation_steps > 1,
        output_gradient=output.numel() * output.element_size() if output.requires_grad else 0.0,
    )


def training_disk(workload: Workload, params: TrainParams) -> TrainingDisk:
    """Estimate how many bytes a run writes. Checkpoints contain the trainable weights and the optimizer's state."""
    model = _on_meta(workload, params)
    trainable = [p for p in model.parameters() if p.requires_grad]
    state = sum(4.0 * _factored(p) for p in trainable)
    if params.optimizer != "adafactor":
        state = _moment_bytes(model, params) + sum(4 * p.numel() for p in trainable if p.element_size() < 4)
    weights = _bytes(trainable)
    frozen = _bytes(p for p in model.parameters() if not p.requires_grad)
    base = 0.0 if workload.from_files else frozen
    kept = params.keep_checkpoints + 1 + (params.early_stopping is not None)
    return TrainingDisk(base, kept * (weights + state), weights + base, weights + base)


def trained_parameter_count(workload: Workload, params: TrainParams) -> int:
    """Number of parameters in the network, including those of an adapter."""
    return sum(p.numel() for p in _on_meta(workload, params).parameters())


def cache_bytes(config: ChatGLM2Config, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes that the key/value cache uses for `tokens` tokens in all layers."""
    return 2 * config.num_layers * config.multi_query_group_num * config.kv_channels * tokens * dtype.itemsize


def _on_meta(workload: Workload, params: TrainParams, layers: int | None = None) -> nn.Module:
    """Build the network as the method tunes it, on the meta device, with `layers` blocks; None = all blocks."""
    config = copy.deepcopy(workload.config)
    config.num_layers = layers or config.num_layers
    if params.method == "ptuning":  # the network's own prefix, because peft's needs content
        config.pre_seq_len = params.prefix.length
    with torch.device("meta"):
        network: Any = ChatGLM2ForCausalLM(config)
        network = network.to(workload.dtype).train()
        if params.method in ("lora", "qlora"):
            return adapt(network, params.method, params.lora, params.prefix)
    if params.method == "ptuning":
        network.requires_grad_(False)
        network.transformer.prefix_encoder.float().requires_grad_(True)
    return network


def _network(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _quantized(model: nn.Module, params: TrainParams) -> list[nn.Parameter]:
    """The frozen matrices of the blocks, if they are quantized."""
    if params.quantization_bits is None:
        return []
    named = model.named_parameters()
    return [p for name, p in named if ".layers." in name and p.dim() > 1 and not p.requires_grad]


def _weight_bytes(model: nn.Module, params: TrainParams) -> float:
    total = _bytes(model.parameters())
    if params.quantization_bits is None:
        return total
    width = _QUANTIZED[params.quantization_bits]
    return total - sum(p.numel() * (p.element_size() - width) for p in _quantized(model, params))


def _bytes(parameters: Iterable[nn.Parameter]) -> float:
    return float(sum(p.numel() * p.element_size() for p in parameters))


def _optimizer_bytes(model: nn.Module, params: TrainParams) -> float:
    trainable = [p for p in model.parameters() if p.requires_grad]
    if params.optimizer == "adafactor":
        return _ADAFACTOR_SCRATCH + sum(4.0 * _factored(p) for p in trainable)
    # fp32 master weights and their gradients, for parameters in half precision
    masters = sum(8 * p.numel() for p in trainable if p.element_size() < 4)
    return masters + _moment_bytes(model, params)


def _unpacked_bytes(trainable: list[nn.Parameter], params: TrainParams, device: str) -> float:
    """Extra bytes, as measured, of a bitsandbytes step on a CPU, which makes fp32 copies of one parameter."""
    largest = max((p.numel() for p in trainable), default=0)
    return 16.0 * largest if params.optimizer == "adamw_8bit" and device == "cpu" else 0.0


def _moment_bytes(model: nn.Module, params: TrainParams) -> float:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    by_muon = sum(p.numel() for name, p in named if params.optimizer == "muon" and is_block_matrix(name, p))
    others = sum(p.numel() for _, p in named) - by_muon
    return _MOMENTS[params.optimizer] * others + _MUON_MOMENT * by_muon


def _factored(parameter: nn.Parameter) -> int:
    """Number of elements in Adafactor's second moment: one per row of a matrix, and one per column of each block."""
    if parameter.dim() < 2:
        return parameter.numel()
    rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
    return rows + columns * -(-parameter.numel() // BLOCK_ELEMENTS)


def _activation_bytes(workload: Workload, params: TrainParams, *, rows: int) -> float:
    """Bytes that the forward pass keeps, and one block's activations and gradients.

    Of a recomputed block, the forward pass keeps only the input.
    """
    shallow, deep = (_kept(workload, params, layers, rows) for layers in (1, 2))
    layers, block = workload.config.num_layers, deep - shallow
    recomputed = params.recomputed_blocks(layers)
    inputs = rows * workload.row_tokens * workload.config.hidden_size * workload.product_dtype.itemsize
    return shallow + recomputed * inputs + max(0, layers - 1 - recomputed) * block + block


def _kept(workload: Workload, params: TrainParams, layers: int, rows: int) -> int:
    """Bytes that the forward pass keeps for the backward pass in a network with `layers` blocks."""
    model = _on_meta(workload, params, layers)
    if multiplies_in_half(params.method, workload.dtype, workload.device):
        model = model.to(workload.dtype)  # autocast's copies have no content here; results and inputs have this size
    network = _network(model)
    ids = torch.zeros(rows, workload.row_tokens, dtype=torch.long, device="meta")

    def forward() -> None:
        # In the dtype of matrix multiplications, which the meta device can't know
        hidden = network.get_input_embeddings()(ids).to(workload.product_dtype)
        network.transformer(inputs_embeds=hidden, use_cache=False)

    return kept_for_backward(model, forward)


def _widened_bytes(workload: Workload, model: nn.Module, params: TrainParams) -> float:
    """Bytes of fp32 weight copies in one matrix multiplication, if the device can't compute in the weights' dtype."""
    if workload.product_dtype == workload.dtype:
        return 0.0
    # bitsandbytes dequantizes a whole matrix to its original dtype, then widens it.
    return max(4.0 * WIDENED_ELEMENTS, *(6.0 * p.numel() for p in _quantized(model, params)), 0.0)


def _loss_bytes(workload: Workload, supervised: int) -> float:
    """One chunk's bytes: log-probabilities and their gradient in fp32, and the gradient in the activations' dtype."""
    vocabulary, width = workload.config.padded_vocab_size, workload.product_dtype.itemsize
    chunk = min(supervised, max(1, _LOSS_CHUNK // vocabulary))
    return float(chunk * vocabulary * (8 + (width if width < 4 else 0)))
