"""`serve`: serves a model with OpenAI's chat protocol."""

import argparse
import ipaddress
import socket
import sys
from importlib import util

from glm2core.cli.answering import load_model_and_format
from glm2core.errors import UserError


def run(arguments: argparse.Namespace) -> None:
    for package in ("fastapi", "uvicorn"):
        if util.find_spec(package) is None:
            raise UserError(f"serve needs the package {package}, which is not installed. Run pip install '.[serve]'")
    import uvicorn

    from glm2core.serving.app import make_app
    from glm2core.serving.engine import Engine

    with _listener(arguments.host, arguments.port) as listener:  # report a busy port before loading a model
        model, chat_format = load_model_and_format(arguments, _note)
        engine = Engine(model, chat_format, arguments.max_context)
        name = str(arguments.model)
        address = f"http://{_shown(arguments.host)}:{listener.getsockname()[1]}"
        if not _is_loopback(arguments.host):
            _note(f"warning: {address} is open to other machines without authentication. Put a proxy in front of it.")
        _note(f"{address}/v1 serves the model {name!r}, up to {engine.context:,} tokens. Ctrl-C stops it.")
        server = uvicorn.Server(
            uvicorn.Config(make_app(engine, name), log_level="warning", timeout_graceful_shutdown=5)
        )
        server.run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"can't listen on {host} port {port}: {error.strerror or error}. Name a different --port (0 = any free "
            "port) or --host."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
