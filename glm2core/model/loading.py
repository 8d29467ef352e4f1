"""Load networks from folders, create them from scratch, and fingerprint a folder's weights."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import GenerationConfig

from glm2core.errors import UserError
from glm2core.family import family_of
from glm2core.files import sha256_file
from glm2core.model.config import ChatGLM2Config, apply_rope
from glm2core.model.initialization import initialize
from glm2core.model.misfits import refuse_prefix_alone, require_fit
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.presets import preset_config
from glm2core.model.quantization import quantization_config
from glm2core.model.released_prefix import network_files
from glm2core.model.rope import RopeScaling, describe_rope
from glm2core.model.tensors import LazyTensor, StoredTensors
from glm2core.model.weight_files import mapped_weights, require_finite
from glm2core.params.model_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    GenerationFile,
    read_config_file,
    read_json,
    read_model_file,
)

# Keys of config.json that do not affect the computation, or that depend on the program that wrote the file.
_UNRELATED_KEYS = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "auto_map")
_NO_CONFIG = f"holds no {CONFIG_FILE}. Name a folder with a released or tuned model in it."


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    family: str = "auto",
    rope: RopeScaling | None = None,
    bits: Literal[4, 8] | None = None,
    base: Path | None = None,
    notice: Callable[[str], None] = print,
) -> ChatGLM2ForCausalLM:
    """Load a released or tuned network, and reject it if any file or tensor is wrong.

    Weights are read tensor by tensor from memory-mapped files, so that anonymous memory stays close to the size of the
    weights in `dtype`.

    Args:
        folder: a folder with config.json and with pytorch_model*.bin or *.safetensors, which may be sharded, and packed
            to 4 or 8 bits.
        dtype: dtype of the weights; with `bits`, dtype of the weights that are not quantized.
        device: device to which the network is loaded.
        family: chatglm2, chatglm3 or auto; it decides the meaning of a released `rope_ratio`.
        rope: scaling of positions to add; None = keep the checkpoint's scaling.
        base: folder of the network that belongs to a released P-tuning prefix; None = the path in the prefix's
            base.json.
        bits: number of bits to which weights are quantized on loading, 4 (nf4) or 8 (LLM.int8); None = no change.
        notice: called with the family and the evidence for it, and then with the RoPE in use.

    Returns:
        The network, in eval mode.

    Raises:
        UserError: a file is missing or damaged, or contains a value out of range; a tensor is missing, is unexpected,
            has the wrong shape or holds NaN; or `rope` would scale positions that are already scaled.
    """
    files = network_files(folder, base)
    config = read_config(folder, family=family, notice=notice)
    generation = read_model_file(folder / GENERATION_FILE, GenerationFile)
    weights = _network_weights(files, config, folder)  # errors are reported before the long part starts
    apply_rope(config, rope)
    notice(f"{folder}: positions up to {config.seq_length:,}, {describe_rope(config.rope_parameters)}")
    options: dict[str, Any] = {"config": config, "dtype": dtype, "device_map": {"": torch.device(device)}}
    if bits is not None:
        options["quantization_config"] = quantization_config(bits, dtype, device)
    if generation is not None and (given := generation.given()):
        options["generation_config"] = GenerationConfig(**given)
    # transformers gets values and tensors, not the folder, so that it sees none of the folder's other files
    config.name_or_path = str(folder)
    network: ChatGLM2ForCausalLM = ChatGLM2ForCausalLM.from_pretrained(None, state_dict=weights, **options)
    network.config.name_or_path = network.name_or_path = str(folder)
    return network


def new_model(
    preset: str,
    vocab_size: int | None,
    *,
    dtype: torch.dtype,
    rope: RopeScaling | None = None,
    initialization: Literal["default", "retrieval"] = "default",
    seed: int = 0,
) -> ChatGLM2ForCausalLM:
    """Create a network from scratch; the same arguments give the same weights.

    Args:
        preset: name of a preset in presets.py.
        vocab_size: number of tokens in the tokenizer; None = the preset's own number.
        dtype: dtype of the weights.
        rope: scaling of the positions; None = the preset's scaling.
        initialization: kind of initial weights, as described in initialization.py.
        seed: random seed for the weights.

    Raises:
        UserError: the preset or the initialization is unknown, or the preset already scales positions.
    """
    config = preset_config(preset, vocab_size)
    apply_rope(config, rope)
    with torch.device("meta"):  # uses no memory, and draws no values that would be discarded
        model: torch.nn.Module = ChatGLM2ForCausalLM(config)
    network = cast(ChatGLM2ForCausalLM, model.to(dtype).to_empty(device="cpu"))
    initialize(network, initialization, seed)
    return network.eval()


def read_config(folder: Path, *, family: str = "auto", notice: Callable[[str], None] = print) -> ChatGLM2Config:
    """Read a folder's configuration; if `family` is auto, `notice` receives the detected family and the evidence.

    Raises:
        UserError: there is no config.json, or it belongs to a different kind of network.
    """
    config = read_config_file(folder)
    if config is None:
        raise UserError(f"{folder} {_NO_CONFIG}")
    if family == "auto":
        family, evidence = family_of(folder)
        notice(f"{folder}: family {family} ({evidence})")
    given = config.given()
    given.pop("quantization_bit", None)  # `packed_bits` reads it; the network itself is never packed
    try:
        return ChatGLM2Config(**{**given, "family": family})
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {str(error).removeprefix('config: ')}") from None


def packed_bits(folder: Path) -> int:
    """Return 4 or 8 if a folder holds released packed weights (such as chatglm2-6b-int4), and otherwise 0.

    Raises:
        UserError: the weights are integers of a width other than 4 or 8 bits.
    """
    config = read_config_file(folder)
    bits = 0 if config is None else config.quantization_bit or 0
    if bits not in (0, 4, 8):
        raise UserError(
            f"{folder / CONFIG_FILE}: quantization_bit is {bits!r}, but released weights are packed to 4 or 8 bits, "
            "or are in half precision (0). Download the file again."
        )
    return bits


def parameter_count(config: ChatGLM2Config) -> int:
    """Count the parameters of a network without building the network."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ChatGLM2ForCausalLM(config).parameters())


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 of the weights' bytes and of the keys in config.json that affect the computation.

    Raises:
        UserError: the weights or config.json are missing.
    """
    values = read_json(folder / CONFIG_FILE)
    if values is None:
        raise UserError(f"{folder} {_NO_CONFIG}")
    related = {key: value for key, value in values.items() if key not in _UNRELATED_KEYS}
    digest = hashlib.sha256(json.dumps(related, sort_keys=True).encode())
    for file in network_files(folder):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _network_weights(files: list[Path], config: ChatGLM2Config, folder: Path) -> dict[str, Any]:
    """The weights in these files, checked against the network that `config` describes, without building it."""
    weights = mapped_weights(files)
    stored = StoredTensors(weights, packed_bits(files[0].parent))
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in ChatGLM2ForCausalLM(config).state_dict().items()}
    if config.pre_seq_len:
        refuse_prefix_alone(expected.keys() - set(stored), folder)
    require_fit(stored.shapes, expected, f"{folder}: the weights do not fit its {CONFIG_FILE}")
    require_finite(weights, folder)
    return {name: LazyTensor(stored, name) if stored.is_packed(name) else stored[name] for name in stored}
