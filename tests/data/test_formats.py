"""Rows of each format: what the conversation is, and each kind of dirt with its reason."""

import pytest

from glm2core.conversation import Conversation, RejectionError
from glm2core.data.formats import detect, to_conversation


def said(conversation: Conversation) -> list[str]:
    return [f"{m['role'][0]}:{m['content']}" for m in conversation.messages]


PARTS = [{"type": "text", "text": text} for text in "ab"]


@pytest.mark.parametrize(
    ("row", "row_format", "expected", "question_chars"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca", ["u:i", "a:o"], None),
        ({"instruction": "i", "input": None, "output": "o"}, "alpaca", ["u:i", "a:o"], None),
        ({"instruction": "i", "input": "text", "output": "o"}, "alpaca", ["u:i\ntext", "a:o"], 1),
        (
            {"instruction": "i", "input": "", "output": "o", "explain": "e"},
            "alpaca",
            ["u:i", "a: EXPLAIN: e CONCLUSION: o"],
            None,
        ),
        ({"instruction": "a\r\nb", "output": " o\r\n"}, "alpaca", ["u:a\nb", "a: o\n"], None),
        ({"prompt": "p", "response": "r"}, "chatglm", ["u:p", "a:r"], None),
        ({"prompt": "p", "response": "r", "history": None}, "chatglm", ["u:p", "a:r"], None),
        ({"prompt": "p", "response": "r", "history": []}, "chatglm", ["u:p", "a:r"], None),
        (
            {"prompt": "p", "response": "r", "history": [["q1", "a1"], ["q2", "a2"]]},
            "chatglm",
            ["u:q1", "a:a1", "u:q2", "a:a2", "u:p", "a:r"],
            None,
        ),
        ({"prompt": "p", "response": "r", "history": ["t1", "", "t2"]}, "chatglm", ["u:p\nt1\nt2", "a:r"], 1),
        ({"prompt": "p", "response": "r", "history": '[["q", "a"]]'}, "chatglm", ["u:q", "a:a", "u:p", "a:r"], None),
        ({"prompt": "p", "response": "r", "history": ""}, "chatglm", ["u:p", "a:r"], None),
        ({"instruction": " ", "input": "text", "output": "o"}, "alpaca", ["u:text", "a:o"], None),
        ({"instruction": "i", "output": "o", "system": "s"}, "alpaca", ["s:s", "u:i", "a:o"], None),
        ({"instruction": "i", "output": "o", "history": [["q", "a"]]}, "alpaca", ["u:q", "a:a", "u:i", "a:o"], None),
        ({"instruction": "i", "output": "o", "history": [], "tools": "[]"}, "alpaca", ["u:i", "a:o"], None),
        ({"prompt": "", "response": "r", "input": "text"}, "chatglm", ["u:text", "a:r"], None),
        ({"prompt": "p", "response": "r", "input": "t", "system": "s"}, "chatglm", ["s:s", "u:p\nt", "a:r"], 1),
        ({"prompt": "p", "response": "r", "input": "t0", "history": ["t1"]}, "chatglm", ["u:p\nt0\nt1", "a:r"], 1),
        (
            {"messages": [{"role": r, "content": r[0]} for r in ("system", "user", "assistant")]},
            "messages",
            ["s:s", "u:u", "a:a"],
            None,
        ),
        (
            {"messages": [{"role": r, "content": r[0]} for r in ("user", "assistant")], "system": "beside"},
            "messages",
            ["s:beside", "u:u", "a:a"],
            None,
        ),
        (
            {
                "messages": [
                    {"role": r, "content": [{"type": "text", "text": t} for t in "ab"]} for r in ("user", "assistant")
                ]
            },
            "messages",
            ["u:a\nb", "a:a\nb"],
            None,
        ),
        (
            {"conversations": [{"from": r, "value": r} for r in ("system", "human", "gpt", "user", "assistant")]},
            "sharegpt",
            ["s:system", "u:human", "a:gpt", "u:user", "a:assistant"],
            None,
        ),
        (
            {"conversations": [{"role": r, "content": r} for r in ("user", "assistant")], "tools": None},
            "sharegpt",
            ["u:user", "a:assistant"],
            None,
        ),
    ],
)
def test_what_a_row_says(row, row_format, expected, question_chars):
    assert detect(row) == row_format
    conversation = to_conversation(row, row_format)
    assert said(conversation) == expected
    assert conversation.question_chars == question_chars
    waiting = to_conversation(row, row_format, answer_needed=False)
    assert said(waiting) == expected[:-1]


def test_columns_are_renamed():
    row = {"ask": "p", "say": "r", "past": [["q", "a"]], "prompt": 3}
    columns = {"prompt": "ask", "response": "say", "history": "past"}
    assert detect(row, columns) == "chatglm"
    assert said(to_conversation(row, "chatglm", columns)) == ["u:q", "a:a", "u:p", "a:r"]


ALPACA = {"instruction": "i", "input": "", "output": "o"}
CHAT = {"prompt": "p", "response": "r"}


def turns(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row_format", "row", "reason"),
    [
        ("alpaca", [1], "the row is a list, not an object"),
        ("alpaca", None, "the row is null, not an object"),
        ("alpaca", {"instruction": "i"}, "output is missing"),
        ("alpaca", ALPACA | {"instruction": None}, "instruction is null"),
        ("alpaca", ALPACA | {"output": 5}, "output is a number, not a text"),
        ("alpaca", ALPACA | {"output": True}, "output is true or false, not a text"),
        ("alpaca", ALPACA | {"input": {"a": 1}}, "input is an object, not a text"),
        ("alpaca", ALPACA | {"output": ""}, "output is empty"),
        ("alpaca", ALPACA | {"output": " \n"}, "output is only white space"),
        ("alpaca", ALPACA | {"instruction": "\u3000"}, "the prompt is only white space"),
        ("alpaca", ALPACA | {"instruction": "a\0b"}, "instruction holds a NUL character"),
        ("chatglm", CHAT | {"history": {}}, "history is an object, not a list"),
        ("chatglm", CHAT | {"history": "words"}, "history is text, but not a JSON list"),
        ("chatglm", CHAT | {"history": [None]}, "a history entry is null, not a pair"),
        ("chatglm", CHAT | {"history": [["q", "a"], None]}, "a history entry is null, not a pair"),
        ("chatglm", CHAT | {"history": [["q"]]}, "a history pair has 1 element, not 2"),
        ("chatglm", CHAT | {"history": [["q", "a", "b"]]}, "a history pair has 3 elements, not 2"),
        ("chatglm", CHAT | {"history": [["q", 1]]}, "a text in history is a number"),
        ("chatglm", CHAT | {"history": [["q", ""]]}, "a text in history is empty"),
        ("chatglm", CHAT | {"history": ["text", ["q", "a"]]}, "history mixes texts and pairs"),
        ("messages", {"messages": []}, "messages is empty"),
        ("messages", {"messages": "words"}, "messages is text, but not a JSON list"),
        ("messages", {"messages": ["x"]}, "a message is a text, not an object"),
        ("messages", turns("tool"), "a message's role is not system, user (human) or assistant (gpt)"),
        ("messages", turns("user", "assistant") | {"tools": [{}]}, "tools can't be used, but the row contains some"),
        ("alpaca", ALPACA | {"images": ["a.png"]}, "images can't be used, but the row contains some"),
        ("alpaca", ALPACA | {"history": ["text"]}, "a history entry is a text, not a pair"),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "a message calls tools, but tool calls can't be used",
        ),
        (
            "messages",
            turns("system", "user", "assistant") | {"system": "y"},
            "system differs from the system message in messages",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "content has a part that is not text",
        ),
        ("sharegpt", {"conversations": []}, "conversations is empty"),
        (
            "sharegpt",
            {"conversations": [{"from": "observation", "value": "x"}]},
            "a message's role is not system, user (human) or assistant (gpt)",
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "value is null"),
        (
            "sharegpt",
            {"conversations": [{"from": "gpt", "value": "x"}]},
            "messages do not take turns: a role is assistant, but should be user",
        ),
        ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, "content is a list, not a text"),
        ("messages", turns("user"), "messages end without an answer"),
        ("messages", turns("system"), "messages hold no question"),
        ("messages", turns("user", "user"), "messages do not take turns: a role is user, but should be assistant"),
        ("messages", turns("user", "system"), "messages do not take turns: a role is system, but should be assistant"),
    ],
)
def test_why_a_row_is_rejected(row_format, row, reason):
    with pytest.raises(RejectionError) as caught:
        to_conversation(row, row_format)
    assert str(caught.value) == reason
