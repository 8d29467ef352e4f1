"""Check a GGUF file against the model from which it was made.

If llama.cpp is installed, it runs the file; otherwise the tensors are read back and compared.

Shapes: `S` places in a prompt, `V` tokens in the vocabulary.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.evaluation.tasks import GeneratedCases, LengthTooShortError
from glm2core.export.forward import Asked, log_probabilities
from glm2core.export.gguf_file import Quantization
from glm2core.export.gguf_layout import Part, parts
from glm2core.export.llama_cpp import LlamaCpp, is_there
from glm2core.export.samples import CHATS, MIXED_TEXTS, sample_texts
from glm2core.export.source import Source
from glm2core.model.tensors import LoraUpdates
from glm2core.text.chat_format import ChatFormat

# Operations that each side spends on the check's prompt: about ten seconds on two cores for a small network
_OPERATIONS = 3e11
_FEWEST_TOKENS = 256
_ANSWER_TOKENS = 12
_PLACES = 6
_LINES_AT_ONCE = 200
# Largest log-probability difference that rounding in all layers explains
_TOLERANCE = {"f32": 1e-3, "f16": 5e-2}
# Largest mean divergence (nats per token) that rounded weights explain; a tensor in the wrong place causes several nats
_DIVERGENCE = {"q8_0": 0.1, "q4_0": 1.0}
# If the likeliest token leads by less than this, rounding decides
_MARGIN = {"f32": 1e-3, "f16": 5e-2}
# Largest rounding error of a tensor that is read back, relative to the tensor's norm
_ROUNDING = {"F32": 1e-6, "F16": 1e-3, "Q8_0": 2e-2, "Q4_0": 2e-1}


class Compared(NamedTuple):
    """The largest difference in any log-probability, and the mean divergence of next-token distributions in nats."""

    positions: int
    difference: float
    divergence: float


def check_network(source: Source, file: Path, quantization: Quantization, notice: Notice) -> None:
    """Compare a written file with its source, and report how it was checked.

    Raises:
        UserError: the file and its source differ by more than the file's precision explains.
    """
    if not is_there():
        _read_back_network(source, file)
        notice("checked by reading back every tensor. On Linux x86-64, pip install '.[gguf]' adds a check in llama.cpp")
        return
    prompt = longest_prompt(source)
    llama = LlamaCpp(file, context=len(prompt) + _ANSWER_TOKENS + 1)
    check_ids(llama, source.chat_format)
    found = compare(source, llama, prompt, quantization)
    notice(
        f"checked in llama.cpp: ids of {MIXED_TEXTS:,} mixed texts, all pieces and chats; a greedy answer; and "
        f"log-probabilities at positions up to {found.positions:,} of {source.config.seq_length:,}, with a largest "
        f"difference of {found.difference:.1e} and a divergence of {found.divergence:.1e} nats per token"
    )


def check_adapter(updates: LoraUpdates, source: Source, file: Path, notice: Notice) -> None:
    """Read an adapter's GGUF file back, and compare the matrices in the file with those of the adapter.

    Raises:
        UserError: a matrix differs.
    """
    stored = _stored(file)
    for part in parts(source.config, list(updates)):
        first, second = updates[part.released]
        for name, expected in ((f"{part.name}.lora_a", first), (f"{part.name}.lora_b", part.of(second))):
            _require_close(name, stored, expected)
    notice(f"checked by reading back {len(stored):,} matrices")


def check_ids(llama: LlamaCpp, chat_format: ChatFormat) -> None:
    """Compare llama.cpp's ids with tokenizer.model's, for mixed texts, every piece and chats.

    Raises:
        UserError: the ids of a text differ; the error message shows the first such text.
    """
    tokenizer = chat_format.tokenizer
    texts = sample_texts(tokenizer)
    # A line end is a token of its own, so many lines can go in one request
    hunks = ["\n".join(texts[start : start + _LINES_AT_ONCE]) for start in range(0, len(texts), _LINES_AT_ONCE)]
    for text in hunks:
        if llama.text_ids(text) != tokenizer.encode(text):
            for line in text.split("\n"):
                _require_same("the text", line, llama.text_ids(line), tokenizer.encode(line))
            raise UserError("llama.cpp joins lines that tokenizer.model keeps apart. Nothing was written.")
    for chat in CHATS:
        _require_same("the chat", str(chat), llama.chat_ids(chat), chat_format.prompt_ids(chat))


def longest_prompt(source: Source, operations: float = _OPERATIONS) -> list[int]:
    """Make a prompt as long as the model's range and `operations` allow.

    The prompt asks a question about a record of lines. If no line fits, the prompt consists of sample texts.
    """
    config = source.config
    room = config.seq_length - _ANSWER_TOKENS - 1
    length = min(room, max(_FEWEST_TOKENS, _tokens_within(source, operations)))
    count = source.chat_format.count_tokens
    try:
        [case] = GeneratedCases(["lines"], [length], 1, 1, 1, 0).cases(count, notice=lambda sentence: None)
        ids = source.chat_format.prompt_ids([{"role": "user", "content": case.context + case.questions[0].text}])
    except LengthTooShortError:
        ids = source.chat_format.tokenizer.encode(" ".join(sample_texts(source.chat_format.tokenizer)))
    return ids[:length]


def compare(source: Source, llama: LlamaCpp, prompt: list[int], quantization: Quantization) -> Compared:
    """Compare the next-token log-probabilities at places throughout the prompt, and the greedy answer to the prompt.

    Raises:
        UserError: the results differ by more than the file's precision explains.
    """
    vocabulary = source.config.padded_vocab_size
    ends = sorted({max(1, round(len(prompt) ** (step / _PLACES))) for step in range(_PLACES)})
    theirs = [llama.log_probabilities(prompt[:end], vocabulary) for end in ends]
    answer, steps = llama.greedy(prompt, _ANSWER_TOKENS, vocabulary)
    places = [end - 1 for end in ends] + list(range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
    [ours] = log_probabilities(source, [Asked([*prompt, *answer[:-1]], places)])
    compared = torch.cat([torch.stack(theirs), steps])
    found = _difference(ours, compared, len(prompt) + len(answer))
    _judge(found, quantization)
    if quantization in _MARGIN:
        _require_greedy(ours[len(ends) :], answer, _MARGIN[quantization])
    return found


def _difference(ours: Tensor, theirs: Tensor, positions: int) -> Compared:
    """Compare two tensors [S, V]. Tokens without a reported log-probability are skipped, but only a few may exist."""
    told = theirs.isfinite()
    if told.float().mean() < 0.99:
        raise UserError("llama.cpp reports no log-probabilities for many of the tokens. Nothing was written.")
    difference = (ours - theirs)[told].abs().max()
    divergence = (ours.exp() * (ours - theirs)).where(told, torch.zeros(())).sum(-1).mean()
    return Compared(positions, float(difference), float(divergence))


def _judge(found: Compared, quantization: Quantization) -> None:
    if quantization in _TOLERANCE:
        value, limit, what = found.difference, _TOLERANCE[quantization], "largest difference in a log-probability"
    else:
        value, limit, what = found.divergence, _DIVERGENCE[quantization], "mean divergence in nats per token"
    if not value <= limit:  # also true for NaN
        raise UserError(
            f"llama.cpp's log-probabilities for the {quantization} file differ from the model's: the {what} is "
            f"{value:.1e}, above the limit of {limit:.0e}. Nothing was written. Check that the weights are finite, or "
            "use --quantize f32."
        )


def _require_greedy(ours: Tensor, answer: list[int], margin: float) -> None:
    for place, (row, token) in enumerate(zip(ours, answer, strict=True)):
        if row.max() - row[token] > margin:
            raise UserError(
                f"llama.cpp's greedy answer differs from the model's: token {place} is {token} in llama.cpp's answer "
                f"and {int(row.argmax())} in the model's. Nothing was written."
            )


def _require_same(what: str, text: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise UserError(
            f"llama.cpp encodes {what} {text!r} as {found}, but tokenizer.model encodes it as {expected}. Nothing was "
            "written. Use the model with chat, predict or serve."
        )


def _tokens_within(source: Source, operations: float) -> int:
    """Return how many tokens a forward pass can read within `operations`.

    A token costs 2 operations per weight. A pair of tokens costs 2 per channel for the scores, and 2 for the values.
    """
    config = source.config
    weights = 2 * sum(shape.numel() for shape in source.shapes.values())
    pairs = 2 * config.num_layers * config.num_attention_heads * config.kv_channels
    return int((-weights + (weights**2 + 4 * pairs * operations) ** 0.5) / (2 * pairs))


def _read_back_network(source: Source, file: Path) -> None:
    stored = _stored(file)
    for part in parts(source.config, list(source.shapes)):
        _require_close(part.name, stored, _expected(source, part))


def _expected(source: Source, part: Part) -> Tensor:
    return part.of(source.read(part.released))


def _stored(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader  # an extra

    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def _require_close(name: str, stored: dict[str, Any], expected: Tensor) -> None:
    from gguf.quants import dequantize

    tensor = stored.get(name)
    if tensor is None:
        raise UserError(
            f"{name} is missing from the file. Nothing was written. The disk may be failing. Run the command again."
        )
    values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).view_as(expected)
    wide = expected.float()
    limit = _ROUNDING[tensor.tensor_type.name] * wide.norm()
    if not (values - wide).norm() <= limit:
        raise UserError(
            f"{name} has different values when it is read back. Nothing was written. Check that the weights are finite."
        )
