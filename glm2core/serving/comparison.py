"""Compare a server with the model: send the same prompts to both, and put their answers side by side.

Shapes: `T` tokens of the prompt and the answer, `V` vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Message
from glm2core.errors import UserError
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.evaluation.tasks import GeneratedCases, LengthTooShortError
from glm2core.serving.remote import Remote, RemoteAnswer
from glm2core.text.chat_format import ChatFormat

_UNSCALED = 2048  # the unscaled range of every family member
_TIE = 0.5  # a lead of the likeliest token (in nats) that half precision and 8-bit weights can reverse
_ANOTHER_VOCABULARY = 0.1  # share of the tokens by which a template may change the count
_FEW_TOKENS = 12
_CHATS: dict[str, list[Message]] = {
    "a question": [{"role": USER, "content": "你好，请介绍一下你自己。"}],
    "three rounds": [
        {"role": USER, "content": "What is the capital of Japan?"},
        {"role": ASSISTANT, "content": "Tokyo."},
        {"role": USER, "content": "Does it lie at the sea?\nAnswer in one word."},
    ],
    "a system text": [{"role": SYSTEM, "content": "Be brief."}, {"role": USER, "content": "为什么天空是蓝色的?"}],
}


@dataclass(frozen=True)
class Result:
    """The comparison for one prompt.

    Attributes:
        tokens: number of tokens of the prompt, counted here.
        theirs_tokens: the server's count of them; None = not reported.
        goes_on: whether the server's answer begins with ours, which is finished, and then continues.
        lead: log-probability of our likeliest token minus that of the second, in nats, where the answers first
            differ; None = they don't differ.
        logprob_difference: largest difference of the log-probabilities of a token in equal answers; None = the server
            does not report all.
        spaced: whether the server's answer had an extra leading space, which servers add that decode tokens one by one.
    """

    name: str
    tokens: int
    theirs_tokens: int | None
    ours: str
    theirs: str
    goes_on: bool
    lead: float | None
    logprob_difference: float | None
    spaced: bool = False

    @property
    def equal(self) -> bool:
        return self.ours == self.theirs

    @property
    def verdict(self) -> str:
        """A sentence that says that the answers are equal, or where they differ."""
        if self.equal:
            return f"equal{' except for a leading space' if self.spaced else ''}: {self.ours[:40]!r}"
        place = next(
            (i for i, (a, b) in enumerate(zip(self.ours, self.theirs, strict=False)) if a != b),
            min(len(self.ours), len(self.theirs)),
        )
        start = max(0, place - 10)
        ours, served = (text[start : place + 20] for text in (self.ours, self.theirs))
        return f"differ from character {place}: ours {ours!r}, served {served!r}"


def compare(
    model: PreTrainedModel, chat_format: ChatFormat, remote: Remote, lengths: Sequence[int], max_new_tokens: int
) -> Iterator[Result]:
    """Send every prompt to both, and compare their greedy answers.

    Args:
        lengths: lengths in tokens of contexts for questions; lengths beyond the model's range are left out.

    Raises:
        UserError: the server does not answer, refuses to, or has another vocabulary.
    """
    answerer = Answerer(model, chat_format, Sampling(max_new_tokens))
    for name, messages in _prompts(answerer, chat_format, lengths, max_new_tokens):
        theirs = remote.answer(messages, max_new_tokens)
        ids = answerer.prompt_ids(messages)
        _require_vocabulary(name, len(ids), theirs.prompt_tokens)
        yield _result(name, model, answerer, ids, theirs)


def usual_cause(results: Sequence[Result]) -> str:
    """The usual cause of such differences, as a sentence."""
    different = [result for result in results if not result.equal]
    if any(result.theirs_tokens not in (None, result.tokens) for result in results):
        odd = next(result for result in results if result.theirs_tokens not in (None, result.tokens))
        return (
            f"Usual cause: the chat template, or special tokens added twice: {odd.name} has {odd.tokens:,} tokens "
            f"here and {odd.theirs_tokens:,} there. Use the template that export wrote (llama-server --jinja)."
        )
    if all(result.goes_on for result in different):
        return "Usual cause: a stop token that the server does not know: its answers equal ours, then continue."
    if all(result.lead is not None and result.lead < _TIE for result in different):
        return (
            "Usual cause: precision: where the answers differ, the model itself is nearly undecided. Check with an "
            "export in f32, or --dtype float32 here."
        )
    if min(result.tokens for result in different) > _UNSCALED and any(result.equal for result in results):
        return (
            f"Usual cause: positions: all answers up to {_UNSCALED:,} tokens are equal. The server reads the RoPE "
            "scaling differently, or its context is shorter than the prompt."
        )
    return (
        "Usual cause: other weights or positions: answers differ where the model is sure. Export this MODEL again and "
        "serve that."
    )


def _prompts(
    answerer: Answerer, chat_format: ChatFormat, lengths: Sequence[int], max_new_tokens: int
) -> Iterator[tuple[str, list[Message]]]:
    yield from _CHATS.items()
    fitting = [length for length in lengths if length + max_new_tokens <= answerer.positions]
    if not fitting:
        return
    generated = GeneratedCases(["lines"], fitting, 1, 1, 1, 0)
    try:
        for case in generated.cases(chat_format.count_tokens, notice=lambda sentence: None):
            content = case.context + case.questions[0].text
            yield f"lines, {case.length:,} tokens", [{"role": USER, "content": content}]
    except LengthTooShortError:
        return


def _require_vocabulary(name: str, ours: int, theirs: int | None) -> None:
    if theirs is not None and abs(theirs - ours) > _FEW_TOKENS + _ANOTHER_VOCABULARY * ours:
        raise UserError(
            f"{name} has {ours:,} tokens by MODEL's tokenizer and {theirs:,} by the server's: it serves another "
            "model, or one with another vocabulary. Name the model that is served, or serve this one."
        )


@torch.inference_mode()
def _result(name: str, model: Any, answerer: Answerer, ids: list[int], theirs: RemoteAnswer) -> Result:
    [made] = answerer.continued([np.array(ids)])
    reply = answerer.read(made)
    unspaced = theirs.text.removeprefix(" ")
    common, text = max(  # the first of equal ones
        ((_common_steps(answerer, made, text), text) for text in (theirs.text, unspaced)), key=lambda found: found[0]
    )
    parts = reply.answer != text
    rows = _log_probabilities(model, [*ids, *made[:-1]], len(made))  # [N, V]
    lead = None
    if parts and common < len(made):
        best = rows[common].topk(2).values
        lead = float(best[0] - best[1])
    difference = None
    # Servers leave out the stop token, and llama.cpp tokens that are part of a character
    if theirs.logprobs and not parts and len(made) - len(theirs.logprobs) in (0, int(reply.finished)):
        own = [float(row[token]) for row, token in zip(rows, made, strict=True)]
        difference = max(abs(a - b) for a, b in zip(own, theirs.logprobs, strict=False))
    goes_on = reply.finished and parts and text.startswith(reply.answer)
    spaced = text != theirs.text
    return Result(name, len(ids), theirs.prompt_tokens, reply.answer, text, goes_on, lead, difference, spaced)


def _common_steps(answerer: Answerer, made: list[int], theirs: str) -> int:
    """Number of our tokens with which their text begins."""
    stops = answerer.chat_format.stop_ids
    for count in range(1, len(made) + 1):
        text = answerer.read(made[:count]).answer.rstrip("\ufffd")
        if made[count - 1] in stops:
            return count - 1 if theirs != text else count
        if not theirs.startswith(text):
            return count - 1
    return len(made)


def _log_probabilities(model: Any, ids: list[int], steps: int) -> Tensor:
    """Log-probabilities of the last `steps` places, [N, V] in fp32, on the CPU."""
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=steps).logits
    return logits[0].float().log_softmax(-1).cpu()
