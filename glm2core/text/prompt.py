"""The wording of prompts, for tokenize, evaluate, predict and chat.

The template chatglm2 (of the released chatglm2 and codegeex2 models) writes the past rounds and the open round, which
has no answer yet, as text,

    [Round 1]\\n\\n问：{query}\\n\\n答：{answer}\\n\\n[Round 2]\\n\\n问：{query}\\n\\n答：

with the full-width colon U+FF1A. This template has no system role, so a system text comes first, as a paragraph of its
own.

The template chatglm3 writes role tokens, `<|user|>\\n {query}<|assistant|>\\n {answer}`. The released chat code ends a
prompt at `<|assistant|>` and lets the model write the line end. Here the line end belongs to the prompt, so that an
answer consists only of its text. In both cases, the ids in front of the answer's text are the same.

A prompt is a list of `Part`s. A text is split into parts only in front of line ends, because SentencePiece never merges
a line end with anything (`tokenizer.py` checks this). The parts' ids, concatenated, are therefore the ids of the whole
text.
"""

from typing import Literal, NamedTuple

from glm2core.conversation import ASSISTANT, SYSTEM, Message

TemplateName = Literal["chatglm2", "chatglm3"]
PairFormat = Literal["glm2", "llama"]

PREFIX_TOKENS: dict[PairFormat, tuple[str, ...]] = {"glm2": ("[gMASK]", "sop"), "llama": ("<s>",)}
"""Special tokens in front of every prompt."""

STOP_TOKENS: dict[TemplateName, tuple[str, ...]] = {
    "chatglm2": ("</s>",),
    "chatglm3": ("</s>", "<|user|>", "<|observation|>"),
}
"""Tokens that end an answer."""

_ANSWER_MARK = "\n\n答："

_JINJA: dict[TemplateName, str] = {
    "chatglm2": (
        "{% set round = namespace(number=0) %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{% set round.number = round.number + 1 %}"
        "{{ '[Round ' ~ round.number ~ ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}"
        "{% else %}{{ message['content'] }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endif %}"
        "{% endfor %}"
    ),
    "chatglm3": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\\n ' + message['content'] }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
}


class Part(NamedTuple):
    """A piece of a prompt.

    text: the text that SentencePiece encodes.
    special: a special token in front of the text.
    continues: whether the text continues the previous part. A text that does so begins with a line end, and is encoded
        without the word-start mark that SentencePiece puts in front of a text.
    """

    text: str
    special: str = ""
    continues: bool = False


def jinja_template(template: TemplateName, prefix: tuple[str, ...] = ()) -> str:
    """The wording of a template as a Jinja chat template for transformers.

    Args:
        prefix: special tokens that the rendered text begins with, such as `("[gMASK]", "sop")`.
    """
    return "".join(prefix) + _JINJA[template]


def system_parts(template: TemplateName, text: str) -> list[Part]:
    """The parts for the system text, in front of the first round."""
    if template == "chatglm3":
        return [Part("\n " + text, special="<|system|>")]
    return [Part(text)]


def has_heads(template: TemplateName) -> bool:
    """Whether each round begins with a numbered line."""
    return template == "chatglm2"


def round_head(number: int, *, first: bool) -> Part:
    """The numbered line of a round in chatglm2; `first` means that nothing comes before this round."""
    return Part(f"[Round {number}]") if first else Part(f"\n\n[Round {number}]", continues=True)


def round_parts(template: TemplateName, query: str, answer: str | None = None) -> list[Part]:
    """The parts of one round after its head. Without `answer`, the round stays open for the model's answer."""
    if template == "chatglm3":
        reply = "\n" if answer is None else "\n " + answer
        return [Part("\n " + query, special="<|user|>"), Part(reply, special="<|assistant|>")]
    return [Part(f"\n\n问：{query}{_ANSWER_MARK}{answer or ''}", continues=True)]


def open_round_pieces(template: TemplateName, question: str, text: str) -> tuple[Part, Part, Part]:
    """The open round after its head, in three parts: the question, the text that the question is about, and the end.

    Together these are `round_parts(template, question + text)`; `text` is empty or begins with a line end.
    """
    if template == "chatglm3":
        return Part("\n " + question, special="<|user|>"), Part(text, continues=True), Part("\n", "<|assistant|>")
    return (Part(f"\n\n问：{question}", continues=True), Part(text, continues=True), Part(_ANSWER_MARK, continues=True))


def render(messages: list[Message], template: TemplateName) -> list[Part]:
    """The parts of a whole prompt, which ends where the model's answer begins.

    Args:
        messages: at most one system message first, then messages from user and assistant in turn. A last message from
            the assistant is left out.
    """
    system, rounds = split_rounds(messages)
    parts = system_parts(template, system) if system is not None else []
    for number, (query, answer) in enumerate(rounds, 1):
        if has_heads(template):
            parts.append(round_head(number, first=not parts))
        parts += round_parts(template, query, None if number == len(rounds) else answer)
    return parts


def split_rounds(messages: list[Message]) -> tuple[str | None, list[tuple[str, str | None]]]:
    """The system text, and the rounds as pairs (query, answer); the last answer is None if it is still to come."""
    system = messages[0]["content"] if messages[0]["role"] == SYSTEM else None
    turns = messages[system is not None :]
    answers = [turn["content"] for turn in turns[1::2]]
    queries = [turn["content"] for turn in turns[0::2]]
    assert all(turn["role"] == ASSISTANT for turn in turns[1::2]), "user and assistant take turns"
    return system, [(q, answers[i] if i < len(answers) else None) for i, q in enumerate(queries)]


def prompt_text(messages: list[Message], template: TemplateName) -> str:
    """The prompt as text, with special tokens spelled out."""
    return "".join(part.special + part.text for part in render(messages, template))
