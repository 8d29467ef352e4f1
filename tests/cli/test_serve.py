"""An exported folder under `transformers serve`, asked by the real openai client over loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
import torch

from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.export.hf import export_hf
from glm2core.model.adapters import load_tuned
from glm2core.text.chat_format import ChatFormat

CHAT = [
    {"role": "user", "content": "日本的首都是哪里？"},
    {"role": "assistant", "content": "东京。"},
    {"role": "user", "content": "Does it lie at the sea?"},
]


@pytest.mark.slow
def test_the_openai_client_gets_the_answer_that_chat_gives(lora_model, tmp_path):
    folder = tmp_path / "exported"
    export_hf(lora_model, folder)
    model = load_tuned(lora_model, dtype=torch.float32, quantized=False)
    expected = Answerer(model, ChatFormat.load(lora_model), Sampling(8)).answer([CHAT])[0].answer
    port = _free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        answer = client.chat.completions.create(model=str(folder), messages=CHAT, max_tokens=8, temperature=0)
    finally:
        server.terminate()
        server.wait(30)
    assert answer.choices[0].message.content == expected != ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"no answer within {seconds} s")
