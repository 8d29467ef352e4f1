"""No process asks the network: a server on the loopback, given to the libraries as their hub, is never called."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from glm2core.model.adapters import adapt, reference_to, save_adapter
from glm2core.model.loading import load_model
from glm2core.params import LoraParams, PrefixParams
from tests.training.conftest import ROOT, small_tokenizer, tiny_model, write_project


class Hub:
    """Counts connections and answers none."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.calls = 0
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def close(self) -> None:
        self._server.close()

    def environment(self) -> dict[str, str]:
        """In which libraries take this server for their hub and for the way to it, and none is told to keep off."""
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), self.address)
        return {**kept, **proxies, "HF_ENDPOINT": self.address, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tiny_model().save_pretrained(base)
    model = adapt(load_model(base, dtype=torch.float32), "lora", LoraParams(), PrefixParams())
    folder.mkdir()
    save_adapter(model, folder, reference_to(base, own=True), base)
    small_tokenizer().save(folder, "chatglm2")
    return folder


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def no_base_weights(folder: Path) -> None:
    (folder / "base/model.safetensors").unlink()


def names_in_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values |= {"auto_map": {"AutoConfig": "evil/repo--e.E"}, "attn_implementation": "evil/kernel"}
    (folder / "config.json").write_text(json.dumps(values))


def names_of_a_hub(folder: Path) -> None:
    """All that a file could name: the base, a tokenizer, code, a kernel, an adapter in the base's folder."""
    for file, values in {
        "adapter_config.json": {"base_model_name_or_path": "evil/repo", "tokenizer_name_or_path": "evil/repo"},
        "base/adapter_config.json": {"base_model_name_or_path": "evil/repo", "peft_type": "LORA"},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil/repo--e.E", None]}},
    }.items():
        place = folder / file
        known = json.loads(place.read_text()) if place.is_file() else {}
        place.write_text(json.dumps(known | values))
    names_in_config(folder / "base")
    reference = reference_to(folder / "base", own=True)
    (folder / "base.json").write_text(reference.model_dump_json())


@pytest.mark.parametrize(
    ("change", "code"),
    [(lambda folder: None, 0), (no_weights, 1), (no_base_weights, 1), (names_of_a_hub, 0)],
    ids=["as saved", "no weights", "no weights of the base", "names of a hub"],
)
def test_a_folder_is_used_without_a_call(
    change: Callable[[Path], None], code: int, adapter: Path, hub: Hub, tmp_path: Path
) -> None:
    change(adapter)
    command = [sys.executable, "-m", "glm2core", "chat", str(adapter), "--max-new-tokens", "2", "--dtype", "float32"]
    done = subprocess.run(command, input="Hi\n", cwd=tmp_path, env=hub.environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert hub.calls == 0


def test_export_makes_no_call(adapter: Path, hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glm2core", "export", str(adapter), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=hub.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.calls == 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_on_a_base_makes_no_call(method: str, hub: Hub, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    small_tokenizer().save(tmp_path / "base", "chatglm2")
    names_in_config(tmp_path / "base")
    write_project(tmp_path, {"method": method, "max_steps": 2}, {"base": "base"})
    command = [sys.executable, "-m", "stages.train"]
    environment = hub.environment() | {"DVC_ROOT": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.calls == 0


def test_the_hub_would_be_called(hub: Hub, tmp_path: Path) -> None:
    """Without our settings the libraries do ask: else the count of the others would say nothing."""
    code = "from huggingface_hub import hf_hub_download; hf_hub_download('some/repo', 'config.json')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=hub.environment(), capture_output=True)
    assert hub.calls > 0
