"""Requests in OpenAI's format. Unsupported keys and values are rejected with an error message, never ignored."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Message

MOST_BYTES = 1_000_000
_MOST_ALTERNATIVES = 20
# Sent by some clients, and without effect on an answer
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# Keys of which only these values are accepted, because they request nothing
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, []),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class RequestError(Exception):
    """A request that can't be answered.

    Args:
        status: HTTP status, 4xx.
        sentence: the error message.
        key: the key of the request that is wrong.
        code: a machine-readable name of the error.
    """

    def __init__(self, status: int, sentence: str, key: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.key, self.code = status, sentence, key, code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        error = {"message": self.sentence, "type": "invalid_request_error", "param": self.key, "code": self.code}
        return {"error": error}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`.

    Args:
        max_tokens: largest number of tokens in the answer; None = as many as fit.
        temperature: sampling temperature; 0 = always the likeliest token.
        top_logprobs: number of alternative tokens that are reported for each token; allowed only with `logprobs: true`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[_Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_ALTERNATIVES)

    @property
    def longest_answer(self) -> int | None:
        """The largest number of tokens in the answer, from `max_completion_tokens` or from `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def conversation(self) -> list[Message]:
        """The messages as the chat template expects them.

        Raises:
            RequestError: the template does not support this order of roles.
        """
        turns = [(SYSTEM if turn.role == "developer" else turn.role, _text(turn)) for turn in self.messages]
        rounds = turns[1:] if turns[0][0] == SYSTEM else turns
        expected = [USER if place % 2 == 0 else ASSISTANT for place in range(len(rounds))]
        if len(rounds) % 2 == 0 or [role for role, _ in rounds] != expected:
            raise RequestError(
                400,
                f"messages: the roles are {', '.join(role for role, _ in turns)}. One system message may come first. "
                "User and assistant must alternate, and the last message must be the user's.",
                "messages",
            )
        return [{"role": role, "content": content} for role, content in turns]


def parse(body: bytes) -> ChatRequest:
    """Parse the body of a request.

    Raises:
        RequestError: the body is not JSON, or it requests something that is not supported.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(400, "the body must be a JSON object with the keys model and messages")
    for key, allowed in _NOT_SERVED.items():
        if key in values and not any(values[key] == value for value in allowed):
            shown = json.dumps(values[key], ensure_ascii=False)[:80]
            raise RequestError(400, f"{key} is {shown}, which is not served here. Leave {key} out.", key, "unsupported")
    kept = {key: value for key, value in values.items() if key not in (*_NOT_SERVED, *_WITHOUT_EFFECT)}
    try:
        request = ChatRequest.model_validate(kept, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = "is not served here; leave it out" if first["type"] == "extra_forbidden" else first["msg"]
        raise RequestError(400, f"{place}: {reason}", place) from None
    if request.stream and request.logprobs:
        raise RequestError(400, "logprobs can't be streamed. Leave out either stream or logprobs.", "logprobs")
    if request.top_logprobs and not request.logprobs:
        raise RequestError(400, "top_logprobs is allowed only if logprobs is true.", "top_logprobs")
    return request


def _text(turn: _Turn) -> str:
    text = turn.content if isinstance(turn.content, str) else "".join(part.text for part in turn.content)
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(
            400, "messages: a content contains half a character (a lone surrogate). Send whole characters.", "messages"
        )
    return text
