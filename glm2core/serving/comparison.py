"""Compare a server with the model: send the same prompts to both, and compare their answers.

Shapes: `T` tokens in the prompt and the answer, `V` tokens in the vocabulary.
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

_UNSCALED = 2048  # the range of every family member without scaling, in tokens
_TIE = 0.5  # a lead of the likeliest token (in nats) that half precision and 8-bit weights can reverse
_ANOTHER_VOCABULARY = 0.1  # largest share of the tokens that a different chat template explains
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
    """The result of the comparison for one prompt.

    Attributes:
        tokens: number of tokens in the prompt with our tokenizer.
        theirs_tokens: number of tokens in the prompt as the server reports it; None = not reported.
        goes_on: whether our answer is finished, and the server's answer begins with it but continues.
        lead: the lead of our likeliest token over the second one where the answers first differ, as a difference of
            log-probabilities in nats; None = the answers don't differ.
        logprob_difference: largest difference between our and the server's log-probability of one token, if the answers
            are equal; None = they differ, or the server does not report all log-probabilities.
        spaced: whether the server's answer began with an extra space, as it does if a server decodes tokens singly.
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
        """A message that says either that the answers are equal or where they differ."""
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
    """Send every prompt to the model and to the server, and compare their greedy answers.

    Args:
        lengths: numbers of tokens in the contexts of questions; lengths beyond the model's range are skipped.

    Raises:
        UserError: the server does not answer, refuses a prompt, or uses a different vocabulary.
    """
    answerer = Answerer(model, chat_format, Sampling(max_new_tokens))
    for name, messages in _prompts(answerer, chat_format, lengths, max_new_tokens):
        theirs = remote.answer(messages, max_new_tokens)
        ids = answerer.prompt_ids(messages)
        _require_vocabulary(name, len(ids), theirs.prompt_tokens)
        yield _result(name, model, answerer, ids, theirs)


def usual_cause(results: Sequence[Result]) -> str:
    """Return a message that names the usual cause of differences like these."""
    different = [result for result in results if not result.equal]
    if any(result.theirs_tokens not in (None, result.tokens) for result in results):
        odd = next(result for result in results if result.theirs_tokens not in (None, result.tokens))
        return (
            "Usual cause: the chat template, or special tokens that are added twice. The prompt for "
            f"'{odd.name}' has {odd.tokens:,} tokens here, but {odd.theirs_tokens:,} on the server. Use the template "
            "that export wrote (llama-server --jinja)."
        )
    if all(result.goes_on for result in different):
        return "Usual cause: a stop token that the server does not know. Its answers begin like ours, then continue."
    if all(result.lead is not None and result.lead < _TIE for result in different):
        return (
            "Usual cause: precision. Where the answers differ, two tokens are about equally likely for the model, too. "
            "Check with an export in f32, or with --dtype float32 here."
        )
    if min(result.tokens for result in different) > _UNSCALED and any(result.equal for result in results):
        return (
            f"Usual cause: positions. All answers to prompts of up to {_UNSCALED:,} tokens are equal, so the server "
            "reads the RoPE scaling differently, or its context is shorter than the longer prompts."
        )
    return (
        "Usual cause: different weights or positions, because the answers differ where the model is sure. Export this "
        "MODEL again, and serve the new export."
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
            f"the prompt for '{name}' has {ours:,} tokens with MODEL's tokenizer, but {theirs:,} with the server's, so "
            "the server uses a different model or a different vocabulary. Give the served model as MODEL, or serve "
            "this MODEL."
        )


@torch.inference_mode()
def _result(name: str, model: Any, answerer: Answerer, ids: list[int], theirs: RemoteAnswer) -> Result:
    [made] = answerer.continued([np.array(ids)])
    reply = answerer.read(made)
    unspaced = theirs.text.removeprefix(" ")
    common, text = max(  # the first text if both are equal
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
    """Return how many of our tokens also begin the server's text."""
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
