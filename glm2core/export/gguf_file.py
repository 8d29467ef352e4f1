"""Write GGUF files: a network or an adapter, one tensor at a time."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from glm2core.console import progress_bar
from glm2core.errors import UserError
from glm2core.export.fast_tokenizer import SPELLED
from glm2core.export.gguf_layout import Part, architecture, keys, parts, rope_factors
from glm2core.export.source import Source
from glm2core.process import available_cores
from glm2core.text.prompt import PREFIX_TOKENS, jinja_template
from glm2core.text.tokenizer import BOS, EOS, PAD, UNKNOWN

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

Quantization = Literal["f32", "f16", "q8_0", "q4_0"]
QUANTIZATIONS: tuple[Quantization, ...] = ("f32", "f16", "q8_0", "q4_0")

# Stored in 8 bits in a 4-bit file: each is only a twelfth of the weights, and the output layer decides every token.
_AT_LEAST_8_BITS = ("token_embd.weight", "output.weight")
_BLOCK_ELEMENTS = 1 << 22  # number of elements that a thread converts at once
_CONTROL, _UNUSED = 3, 5  # GGUF's token types; for pieces they equal SentencePiece's


class _Entry(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    read: Callable[[], Tensor]


def require_gguf() -> None:
    """Refuse to continue without the package that writes GGUF.

    Raises:
        UserError: the package is not installed.
    """
    if util.find_spec("gguf") is None:
        raise UserError("writing GGUF files needs the package gguf, which is not installed. Run pip install '.[gguf]'")


def write_network(source: Source, quantization: Quantization, path: Path) -> None:
    """Write the network and its tokenizer.

    Raises:
        UserError: a weight is not finite, or is too large for half precision.
    """
    writer = _writer(path, architecture(source.config))
    writer.add_type("model")
    writer.add_name(source.folder.resolve().name)
    _add_network_keys(writer, source, quantization)
    _add_tokenizer(writer, source)
    entries = [_weight(source, part, quantization) for part in parts(source.config, list(source.shapes))]
    factors = rope_factors(source.config)
    if factors is not None:
        entries.append(_Entry("rope_freqs.weight", tuple(factors.shape), _kind("f32"), lambda: factors))
    _write(writer, entries, quantization)


def write_adapter(source: Source, path: Path) -> None:
    """Write a LoRA adapter's own matrices in fp32, for use with a GGUF file of its base.

    Raises:
        UserError: `source` is not a LoRA adapter.
    """
    if source.updates is None:
        raise UserError(f"{source.folder} holds full weights, not a LoRA adapter. Export it with --format gguf.")
    updates = source.updates
    writer = _writer(path, architecture(source.config))
    writer.add_type("adapter")
    writer.add_name(source.folder.resolve().name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", updates.alpha)
    entries = []
    for part in parts(source.config, list(updates)):
        rows = len(range(source.shapes[part.released][0])[part.rows])
        inputs = source.shapes[part.released][1]

        def first(name: str = part.released) -> Tensor:
            return updates[name][0]

        def second(part: Part = part) -> Tensor:
            return part.of(updates[part.released][1])

        entries.append(_Entry(f"{part.name}.lora_a", (updates.rank, inputs), _kind("f32"), first))
        entries.append(_Entry(f"{part.name}.lora_b", (rows, updates.rank), _kind("f32"), second))
    _write(writer, entries, "f32")


def _writer(path: Path, arch: str) -> "GGUFWriter":
    from gguf import GGUFWriter  # an extra

    return GGUFWriter(path, arch)


def _kind(quantization: str) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[quantization.upper()]


def _add_network_keys(writer: "GGUFWriter", source: Source, quantization: Quantization) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(LlamaFileType[names[quantization]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for key, value in keys(source.config).items():
        name = f"{writer.arch}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)


def _add_tokenizer(writer: "GGUFWriter", source: Source) -> None:
    chat_format, rows = source.chat_format, source.config.padded_vocab_size
    messages: Any = sentencepiece_model_pb2  # its classes are created at run time
    pieces = messages.ModelProto.FromString(chat_format.tokenizer.model).pieces
    special = {token: SPELLED.get(name, name) for name, token in chat_format.tokenizer.special_ids.items()}
    tokens = [(piece.piece, piece.score, piece.type) for piece in pieces]
    for token in range(len(tokens), rows):
        # other converters name rows without a token `[PAD...]` as well
        tokens.append((special[token], 0.0, _CONTROL) if token in special else (f"[PAD{token}]", -1e4, _UNUSED))
    texts, scores, kinds = zip(*tokens[:rows], strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(texts))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(kinds))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_pad_token_id(PAD)
    turn_ends = chat_format.stop_ids[1:]  # llama.cpp recognises end tokens by their text, and these are not in its list
    if turn_ends:
        writer.add_eot_token_id(turn_ends[0])
        writer.add_eom_token_id(turn_ends[1])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    prefix = tuple(SPELLED.get(token, token) for token in PREFIX_TOKENS[chat_format.pair_format])
    writer.add_chat_template(jinja_template(chat_format.template, prefix))


def _weight(source: Source, part: Part, quantization: Quantization) -> _Entry:
    shape = source.shapes[part.released]
    rows = len(range(shape[0])[part.rows])
    return _Entry(
        part.name,
        (rows, *shape[1:]),
        _kind(_stored_as(part.name, shape, quantization)),
        lambda: part.of(source.read(part.released)),
    )


def _stored_as(name: str, shape: tuple[int, ...], quantization: Quantization) -> Quantization:
    if len(shape) == 1:  # norms and biases are a thousandth of the weights
        return "f32"
    if quantization in ("q8_0", "q4_0") and shape[-1] % 32:  # blocks of 32 columns
        return "f16"
    return "q8_0" if quantization == "q4_0" and name in _AT_LEAST_8_BITS else quantization


def _write(writer: "GGUFWriter", entries: Iterable[_Entry], quantization: str) -> None:
    from gguf.quants import quant_shape_to_byte_shape

    entries = list(entries)
    for entry in entries:
        if entry.kind.name in ("F32", "F16"):
            dtype = np.dtype(np.float32 if entry.kind.name == "F32" else np.float16)
            writer.add_tensor_info(entry.name, entry.shape, dtype, int(np.prod(entry.shape)) * dtype.itemsize)
        else:
            shape = quant_shape_to_byte_shape(entry.shape, entry.kind)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), int(np.prod(shape)), entry.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress_bar(f"tensors in {quantization}", len(entries)) as (bar, task):
            for entry in entries:
                writer.write_tensor_data(_encoded(entry))
                bar.advance(task)
    finally:
        writer.close()


def _encoded(entry: _Entry) -> np.ndarray:
    """Convert a tensor to the file's format, with several threads that each convert blocks of its rows."""
    from gguf.quants import quantize

    tensor = entry.read()
    step = max(1, _BLOCK_ELEMENTS // tensor[0].numel())

    def block(start: int) -> np.ndarray:
        values = tensor[start : start + step].float().numpy()
        with np.errstate(over="ignore"):  # reported below
            made = quantize(values, entry.kind)
        if not np.isfinite(made if made.dtype.kind == "f" else values).all():
            raise UserError(_not_finite(entry, values))
        return np.ascontiguousarray(made)

    starts = range(0, len(tensor), step)
    with ThreadPoolExecutor(available_cores()) as pool:
        return np.concatenate(list(pool.map(block, starts)))


def _not_finite(entry: _Entry, values: np.ndarray) -> str:
    if np.isfinite(values).all():
        return (
            f"{entry.name} holds the value {abs(values).max():.3g}, but half precision ends at "
            f"{np.finfo(np.float16).max:.0f}. Nothing was written. Export with --quantize f32."
        )
    return f"{entry.name} holds NaN or infinity. Nothing was written. Tune again."
