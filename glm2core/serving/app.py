"""Serve an engine over OpenAI's chat protocol, with whole answers or with answers as server-sent events."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from glm2core.serving.engine import Answered, Engine, TokenChoice
from glm2core.serving.requests import MOST_BYTES, ChatRequest, RequestError, parse

_ROUTES = "GET /health, GET /v1/models and POST /v1/chat/completions"


def make_app(engine: Engine, name: str) -> FastAPI:
    """Build the web application that answers requests with an engine.

    Args:
        name: the model's name, which every request must contain.
    """
    app = FastAPI(title="glm2core", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestError)
    def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(404)
    @app.exception_handler(405)
    def unknown(request: Request, _: Exception) -> JSONResponse:
        sentence = f"{request.method} {request.url.path} is not served here; {_ROUTES} are."
        return JSONResponse(RequestError(404, sentence).body, 404)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "glm2core", "context_length": engine.context}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = parse(await _body(request))
        if asked.model != name:
            raise RequestError(
                404, f"there is no model {asked.model!r} here; the model is named {name!r}.", "model", "model_not_found"
            )
        if not asked.stream:
            answered = await run_in_threadpool(engine.answer, asked)
            return JSONResponse(_whole(answered, engine, name))
        ids = await run_in_threadpool(engine.prompt_ids, asked)  # an error becomes an HTTP status, not an event
        return StreamingResponse(_events(engine, asked, ids, name), media_type="text/event-stream")

    return app


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise RequestError(
                413, f"the request's body contains more than {MOST_BYTES:,} bytes. Send less text.", code="too_large"
            )
    return body


def _whole(answered: Answered, engine: Engine, name: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": answered.text},
        "finish_reason": _reason(answered),
        "logprobs": None,
    }
    if answered.choices:
        choice["logprobs"] = {"content": [_token(entry, engine) for entry in answered.choices]}
    return {**_head("chat.completion", name), "choices": [choice], "usage": _usage(answered)}


def _events(engine: Engine, asked: ChatRequest, ids: list[int], name: str) -> Iterator[str]:
    head = _head("chat.completion.chunk", name)

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    yield event({"role": "assistant", "content": ""})
    for piece in engine.answer_in_pieces(asked, ids):
        if isinstance(piece, str):
            yield event({"content": piece})
        else:
            yield event({}, _reason(piece))
            if asked.stream_options and asked.stream_options.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(piece)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _head(kind: str, name: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _reason(answered: Answered) -> str:
    return "stop" if answered.finished else "length"


def _usage(answered: Answered) -> dict[str, int]:
    prompt, answer = answered.prompt_tokens, answered.answer_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _token(entry: TokenChoice, engine: Engine) -> dict[str, Any]:
    tokenizer = engine.chat_format.tokenizer

    def told(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.piece(token)
        return {"token": text, "logprob": logprob, "bytes": _bytes(text)}

    alternatives = [told(*pair) for pair in entry.alternatives]
    return {**told(entry.token, entry.logprob), "top_logprobs": alternatives}


def _bytes(piece: str) -> list[int]:
    """The bytes of a piece's text. SentencePiece writes a space as U+2581, and a single byte in the form <0x0A>."""
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return [int(match.group(1), 16)]
    return list(piece.replace("\u2581", " ").encode())
