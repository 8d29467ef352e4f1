"""`python -m glm2core serve` as a process of its own, and requests to it over loopback."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.conftest import PROJECT


@contextmanager
def served(model: Path, *options: str, seconds: float = 180) -> Iterator[str]:
    """The address of a server, up to `/v1`."""
    command = [sys.executable, "-m", "glm2core", "serve", str(model), "--port", "0", "--dtype", "float32", *options]
    server = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert server.stderr is not None
    lines: list[str] = []
    found: list[str] = []

    def read() -> None:
        for line in server.stderr:
            lines.append(line)
            found.extend(re.findall(r"(http://\S+/v1) serves", line))

    threading.Thread(target=read, daemon=True).start()
    try:
        end = time.monotonic() + seconds
        while not found:
            assert server.poll() is None, "".join(lines)
            assert time.monotonic() < end, "".join(lines)
            time.sleep(0.1)
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)


def post(url: str, body: Any, *, path: str = "/chat/completions") -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer; `body` is sent as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
