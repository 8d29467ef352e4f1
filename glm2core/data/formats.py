"""Reads raw rows in each supported format; each row becomes a conversation or is rejected with a reason.

The formats have these columns:

alpaca: `instruction`, `input`, `output`, and optionally `explain`, `history` and `system`. `history` is a list with one
[question, answer] pair for each past round.
chatglm: `prompt`, `input`, `response`, `system` and `history`. `history` is empty, or it is a list. The list contains
either one [question, answer] pair for each past round, or texts that the prompt asks about.
messages: `system` and `messages`, which is a list of objects with the keys `role` and `content`.
sharegpt: `system` and `conversations`, which is a list of objects with the keys `from` and `value`, or `role` and
`content`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message, RejectionError

RawRow = Mapping[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "output", "input", "explain", "history", "system"),
    "chatglm": ("prompt", "response", "input", "history", "system"),
    "messages": ("messages", "system"),
    "sharegpt": ("conversations", "system"),
}
QUESTION = {"alpaca": "instruction", "chatglm": "prompt", "messages": "messages", "sharegpt": "conversations"}
ANSWER = {"alpaca": "output", "chatglm": "response"}
UNUSABLE = ("tools", "functions", "images", "audios", "videos")
"""Columns that belong to a prompt, but that no format supports; a row with a value in such a column is rejected."""

_ROLES = {"system": SYSTEM, "user": USER, "human": USER, "assistant": ASSISTANT, "gpt": ASSISTANT}
_TURN_KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value", "role", "content")}
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def detect(row: Any, columns: Mapping[str, str] | None = None) -> str | None:
    """The format that a row's columns match, or None; `columns` maps standard column names to the names in the file."""
    if not isinstance(row, dict):
        return None
    row = _renamed(row, columns)
    for name in ("messages", "sharegpt", "alpaca", "chatglm"):
        if QUESTION[name] in row:
            return name
    return None


def to_conversation(
    row: Any, row_format: str, columns: Mapping[str, str] | None = None, *, answer_needed: bool = True
) -> Conversation:
    """Convert one raw row to a conversation.

    Args:
        row_format: alpaca, chatglm, messages or sharegpt.
        columns: maps standard column names to the names in this file. A mapped column is read only under its standard
            name, even if the name in the file is itself a standard name.
        answer_needed: False if the model will answer the row, so that an answer in the row is dropped.

    Raises:
        RejectionError: the row can't be used; the error message says why.
    """
    if not isinstance(row, dict):
        raise RejectionError(f"the row is {kind_of(row)}, not an object")
    row = _renamed(row, columns)
    for name in UNUSABLE:
        if name in row and not _is_blank(row[name]):
            raise RejectionError(f"{name} can't be used, but the row contains some")
    conversation = _READERS[row_format](row, answer_needed)
    if not answer_needed and conversation.answered:
        return Conversation(conversation.messages[:-1], conversation.question_chars)
    return conversation


def unread_columns(
    row: RawRow, row_format: str, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bool]]:
    """For each column that `row_format` does not read, yield its name in the file and whether known content is lost.

    Content is known if its column's name, apart from case and spaces, is a column name of any format. Keys of a message
    that are not read are also yielded, with names such as `messages[].name`.
    """
    taken = set((columns or {}).values())
    read, known = COLUMNS[row_format], COLUMN_NAMES
    for name, value in row.items():
        standard = name not in taken and name not in (columns or {})
        if name in taken or (standard and name in read):
            continue
        yield name, name.strip().lower() in known and not _is_blank(value)
    if row_format in _TURN_KEYS:
        name = (columns or {}).get(QUESTION[row_format], QUESTION[row_format])
        turns = row.get(name)
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict) and len(turn) > 2:
                yield from ((f"{name}[].{key}", False) for key in turn if key not in _TURN_KEYS[row_format])


def _renamed(row: dict[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """The row with standard column names; a mapped column no longer appears under its name in the file."""
    if columns:
        taken = {*columns, *columns.values()}
        named = {name: row[theirs] for name, theirs in columns.items() if theirs in row}
        row = {name: value for name, value in row.items() if name not in taken} | named
    if any(value.__class__ is float and value != value for value in row.values()):  # pandas' empty cells are NaN
        row = {name: None if value != value else value for name, value in row.items()}
    return row


def _alpaca(row: RawRow, answer_needed: bool) -> Conversation:
    rounds, texts = _history(row.get("history"))
    if texts:
        raise RejectionError("a history entry is a text, not a pair")
    query, question_chars = _with_text(_text(row, "instruction"), _optional_text(row, "input"))
    messages = [*_system(row), *_past(rounds), _question(query)]
    if answer_needed:
        answer = _text(row, "output")
        _not_blank(answer, "output")
        if explain := _optional_text(row, "explain"):
            answer = f" EXPLAIN: {explain} CONCLUSION: {answer}"
        messages.append(_message(ASSISTANT, answer))
    return Conversation(messages, question_chars)


def _chatglm(row: RawRow, answer_needed: bool) -> Conversation:
    prompt = _text(row, "prompt")
    rounds, texts = _history(row.get("history"))
    given = [text for text in (_optional_text(row, "input"), *texts) if text.strip()]
    query, question_chars = _with_text(prompt, "\n".join(given))
    messages = [*_system(row), *_past(rounds), _question(query)]
    if answer_needed:
        answer = _text(row, "response")
        _not_blank(answer, "response")
        messages.append(_message(ASSISTANT, answer))
    return Conversation(messages, question_chars)


def _system(row: RawRow) -> list[Message]:
    text = _optional_text(row, "system")
    return [_message(SYSTEM, text)] if text.strip() else []


def _past(rounds: list[list[str]]) -> Iterator[Message]:
    return (_message(role, text) for pair in rounds for role, text in zip((USER, ASSISTANT), pair, strict=True))


def _question(query: str) -> Message:
    _not_blank(query, "the prompt")
    return _message(USER, query)


def _history(history: Any) -> tuple[list[list[str]], list[str]]:
    """The past rounds as [query, answer] pairs, and the texts that the prompt asks about; one of the lists is empty."""
    if isinstance(history, str):
        history = _list_cell(history, "history")
    if history is None:
        return [], []
    if not isinstance(history, list):
        raise RejectionError(f"history is {kind_of(history)}, not a list")
    if all(isinstance(entry, str) for entry in history):
        return [], [_clean(entry, "history") for entry in history if entry.strip()]
    if any(isinstance(entry, str) for entry in history):
        raise RejectionError("history mixes texts and pairs")
    return [_pair(entry) for entry in history], []


def _list_cell(cell: str, name: str) -> Any:
    """The list that a CSV cell holds as JSON."""
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise RejectionError(f"{name} is text, but not a JSON list") from None


def _pair(entry: Any) -> list[str]:
    if not isinstance(entry, list):
        raise RejectionError(f"a history entry is {kind_of(entry)}, not a pair")
    if len(entry) != 2:
        raise RejectionError(f"a history pair has {len(entry)} element{'s' * (len(entry) != 1)}, not 2")
    for text in entry:
        if not isinstance(text, str):
            raise RejectionError(f"a text in history is {kind_of(text)}")
        _not_blank(text, "a text in history")
    return [_clean(text, "history") for text in entry]


def _messages(row: RawRow, answer_needed: bool) -> Conversation:
    return _turns(row, "messages", answer_needed)


def _sharegpt(row: RawRow, answer_needed: bool) -> Conversation:
    return _turns(row, "conversations", answer_needed)


def _turns(row: RawRow, name: str, answer_needed: bool) -> Conversation:
    entries = row.get(name)
    if isinstance(entries, str):  # a CSV cell
        entries = _list_cell(entries, name)
    if not isinstance(entries, list) or not entries:
        raise RejectionError(f"{name} is empty" if entries == [] else f"{name} is {kind_of(entries)}, not a list")
    messages = [_checked_message(entry) for entry in entries]
    system = _system(row)
    turns = messages[1:] if messages[0]["role"] == SYSTEM else messages
    if system and len(turns) < len(messages) and messages[0] != system[0]:
        raise RejectionError(f"system differs from the system message in {name}")
    if not turns:
        raise RejectionError("messages hold no question")
    for number, message in enumerate(turns):
        expected = (USER, ASSISTANT)[number % 2]
        if message["role"] != expected:
            raise RejectionError(f"messages do not take turns: a role is {message['role']}, but should be {expected}")
    if answer_needed and turns[-1]["role"] != ASSISTANT:
        raise RejectionError("messages end without an answer")
    return Conversation(messages if len(turns) < len(messages) else [*system, *turns])


def _checked_message(entry: Any) -> Message:
    """Check a turn, with the keys `role` and `content` or `from` and `value`, and convert it to a message."""
    if not isinstance(entry, dict):
        raise RejectionError(f"a message is {kind_of(entry)}, not an object")
    speaker, said = ("role", "content") if "role" in entry or "from" not in entry else ("from", "value")
    role = entry.get(speaker)
    if any(not _is_blank(entry.get(name)) for name in ("tool_calls", "function_call")):
        raise RejectionError("a message calls tools, but tool calls can't be used")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RejectionError("a message's role is not system, user (human) or assistant (gpt)")
    role = _ROLES[role.lower()]
    content = _joined_parts(entry[said]) if isinstance(entry.get(said), list) else _text(entry, said)
    _not_blank(content, f"a message of the {role}")
    return _message(role, content)


def _joined_parts(parts: list[Any]) -> str:
    """Join content that is a list of parts with line breaks; all parts must be text."""
    if not all(isinstance(part, dict) for part in parts):
        raise RejectionError("content is a list, not a text")
    if any(part.get("type") != "text" for part in parts):
        raise RejectionError("content has a part that is not text")
    return "\n".join(_text(part, "text") for part in parts)


_READERS: dict[str, Callable[[RawRow, bool], Conversation]] = {
    "alpaca": _alpaca,
    "chatglm": _chatglm,
    "messages": _messages,
    "sharegpt": _sharegpt,
}
COLUMN_NAMES = frozenset(name for columns in COLUMNS.values() for name in columns)


def _with_text(question: str, text: str) -> tuple[str, int | None]:
    """The question and the text, joined by a line break, and the question's length in characters.

    If the question or the text is blank, the other is returned alone, and the length is None.
    """
    if not text.strip():
        return question, None
    if not question.strip():
        return text, None
    return f"{question}\n{text}", len(question)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(row: RawRow, name: str) -> str:
    value = row.get(name)
    if value.__class__ is str:
        return _clean(value, name)
    if value is None:
        raise RejectionError(f"{name} is {'null' if name in row else 'missing'}")
    raise RejectionError(f"{name} is {kind_of(value)}, not a text")


def _optional_text(row: RawRow, name: str) -> str:
    return "" if row.get(name) is None else _text(row, name)


def _clean(text: str, name: str) -> str:
    if "\0" in text:
        raise RejectionError(f"{name} holds a NUL character")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _not_blank(text: str, name: str) -> None:
    if not text or text.isspace():
        raise RejectionError(f"{name} is {'only white space' if text else 'empty'}")


def kind_of(value: Any) -> str:
    """The name of a value's type, worded for error messages."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _is_blank(value: Any) -> bool:
    """Whether a value is null, or an empty text, list or object, also as written in a CSV cell or a float column."""
    if isinstance(value, str):
        return value.strip() in ("", "[]")
    return value is None or value != value or value in ([], {})
