"""The formats of raw rows, each turned into a conversation or rejected with a reason.

alpaca: `instruction`, `input`, `output`, and `explain` where there is one.
chatglm: `prompt`, `response`, `history` (pairs of past rounds; or texts that the prompt asks
about; or empty, null or absent).
messages: `messages`, a list of `{"role", "content"}`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message, RejectionError

Row = Mapping[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "output", "input", "explain"),
    "chatglm": ("prompt", "response", "history"),
    "messages": ("messages",),
}
QUESTION = {"alpaca": "instruction", "chatglm": "prompt", "messages": "messages"}
ANSWER = {"alpaca": "output", "chatglm": "response"}

_KINDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def detect(row: Any, columns: Mapping[str, str] | None = None) -> str | None:
    """The format whose columns a row has, or None. `columns` renames: standard name -> name in the file."""
    if not isinstance(row, dict):
        return None
    for name in ("messages", "alpaca", "chatglm"):
        if _named(QUESTION[name], columns) in row:
            return name
    return None


def to_conversation(
    row: Any, row_format: str, columns: Mapping[str, str] | None = None, *, answer_needed: bool = True
) -> Conversation:
    """Read one raw row.

    Args:
        row_format: alpaca, chatglm or messages.
        columns: standard column name -> its name in this file.
        answer_needed: False for rows that wait for an answer: one that is there is left out.

    Raises:
        RejectionError: why the row can't be used.
    """
    if not isinstance(row, dict):
        raise RejectionError(f"the row is {_kind(row)}, not an object")
    if columns:
        row = dict(row) | {name: row.get(theirs) for name, theirs in columns.items()}
    conversation = _READERS[row_format](row, answer_needed)
    if not answer_needed and conversation.answered:
        return Conversation(conversation.messages[:-1], conversation.question_chars)
    return conversation


def _alpaca(row: Row, answer_needed: bool) -> Conversation:
    instruction = _text(row, "instruction")
    query, question_chars = _with_text(instruction, _optional_text(row, "input"))
    _not_blank(query, "the prompt")
    if not answer_needed:
        return Conversation([_message(USER, query)], question_chars)
    answer = _text(row, "output")
    _not_blank(answer, "output")
    if explain := _optional_text(row, "explain"):
        answer = f" EXPLAIN: {explain} CONCLUSION: {answer}"
    return Conversation([_message(USER, query), _message(ASSISTANT, answer)], question_chars)


def _chatglm(row: Row, answer_needed: bool) -> Conversation:
    prompt = _text(row, "prompt")
    rounds, texts = _history(row.get("history"))
    query, question_chars = _with_text(prompt, "\n".join(texts))
    _not_blank(query, "the prompt")
    messages = [_message(role, text) for pair in rounds for role, text in zip((USER, ASSISTANT), pair, strict=True)]
    messages.append(_message(USER, query))
    if answer_needed:
        answer = _text(row, "response")
        _not_blank(answer, "response")
        messages.append(_message(ASSISTANT, answer))
    return Conversation(messages, question_chars)


def _history(history: Any) -> tuple[list[list[str]], list[str]]:
    """Past rounds as [query, answer] pairs, or the texts that the prompt asks about; one of them is empty."""
    if isinstance(history, str):
        history = _list_cell(history, "history")
    if history is None:
        return [], []
    if not isinstance(history, list):
        raise RejectionError(f"history is {_kind(history)}, not a list")
    if all(isinstance(entry, str) for entry in history):
        return [], [_clean(entry, "history") for entry in history if entry.strip()]
    if any(isinstance(entry, str) for entry in history):
        raise RejectionError("history mixes texts and pairs")
    return [_pair(entry) for entry in history], []


def _list_cell(cell: str, name: str) -> Any:
    """A CSV cell holds the list as JSON."""
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise RejectionError(f"{name} is a text that is not a JSON list") from None


def _pair(entry: Any) -> list[str]:
    if not isinstance(entry, list):
        raise RejectionError(f"a history entry is {_kind(entry)}, not a pair")
    if len(entry) != 2:
        raise RejectionError(f"a history pair has {len(entry)} element{'s' * (len(entry) != 1)}, not 2")
    for text in entry:
        if not isinstance(text, str):
            raise RejectionError(f"a text in history is {_kind(text)}")
        _not_blank(text, "a text in history")
    return [_clean(text, "history") for text in entry]


def _messages(row: Row, answer_needed: bool) -> Conversation:
    entries = row.get("messages")
    if isinstance(entries, str):  # a CSV cell
        entries = _list_cell(entries, "messages")
    if not isinstance(entries, list) or not entries:
        raise RejectionError("messages is empty" if entries == [] else f"messages is {_kind(entries)}, not a list")
    messages = [_checked_message(entry) for entry in entries]
    turns = messages[1:] if messages[0]["role"] == SYSTEM else messages
    if not turns:
        raise RejectionError("messages hold no question")
    for number, message in enumerate(turns):
        expected = (USER, ASSISTANT)[number % 2]
        if message["role"] != expected:
            raise RejectionError(f"messages do not take turns: a role is {message['role']} where {expected} is due")
    if answer_needed and turns[-1]["role"] != ASSISTANT:
        raise RejectionError("messages end without an answer")
    return Conversation(messages)


def _checked_message(entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise RejectionError(f"a message is {_kind(entry)}, not an object")
    role = entry.get("role")
    if role not in (SYSTEM, USER, ASSISTANT):
        raise RejectionError("a message's role is not system, user or assistant")
    content = _text(entry, "content")
    _not_blank(content, f"a message of the {role}")
    return _message(role, content)


_READERS: dict[str, Callable[[Row, bool], Conversation]] = {
    "alpaca": _alpaca,
    "chatglm": _chatglm,
    "messages": _messages,
}


def _with_text(question: str, text: str) -> tuple[str, int | None]:
    """The query: the text follows its question after a newline."""
    if not text.strip():
        return question, None
    return f"{question}\n{text}", len(question)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if value.__class__ is str:
        return _clean(value, name)
    if value is None:
        raise RejectionError(f"{name} is {'null' if name in row else 'missing'}")
    raise RejectionError(f"{name} is {_kind(value)}, not a text")


def _optional_text(row: Row, name: str) -> str:
    return "" if row.get(name) is None else _text(row, name)


def _clean(text: str, name: str) -> str:
    if "\0" in text:
        raise RejectionError(f"{name} holds a NUL character")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _not_blank(text: str, name: str) -> None:
    if not text or text.isspace():
        raise RejectionError(f"{name} is {'only white space' if text else 'empty'}")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _named(name: str, columns: Mapping[str, str] | None) -> str:
    return (columns or {}).get(name, name)
