"""`compare`: a server of the same model, of another one, and no server."""

import socket
import threading

import pytest
import torch

from glm2core.cli.main import main
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.export.gguf_file import write_network
from glm2core.export.llama_cpp import LlamaCpp
from glm2core.export.source import Source
from glm2core.model.adapters import load_tuned
from glm2core.serving.comparison import Result, compare, usual_cause
from glm2core.serving.remote import Remote, RemoteAnswer
from glm2core.text.chat_format import ChatFormat
from tests.cli.conftest import make_full
from tests.export.networks import needs_llama_cpp
from tests.serving.server import served

FEW = ["--lengths", "600", "2500", "--max-new-tokens", "6", "--dtype", "float32"]


def test_serve_answers_as_the_model(prefix_model, capsys):
    with served(prefix_model) as url:
        assert main(["compare", str(prefix_model), "--url", url, *FEW]) == 0
    told = capsys.readouterr().out
    assert "5 of 5" in told
    assert "lines, 2,500 tokens" in told
    assert "largest difference" in told


def test_another_model_is_told(full_model, tokenizer, tmp_path, capsys):
    with served(make_full(tmp_path / "other", tokenizer)) as url:
        assert main(["compare", str(full_model), "--url", url, *FEW[:2], *FEW[3:]]) == 1
    said = capsys.readouterr()
    assert "answers differ from" in said.err
    assert "differ from character" in said.out


@needs_llama_cpp
def test_llama_cpp_serves_what_was_trained(full_model, tmp_path, capsys):
    write_network(Source.open(full_model, notice=lambda sentence: None), "f32", tmp_path / "model.gguf")
    llama = LlamaCpp(tmp_path / "model.gguf", context=4096)
    assert main(["compare", str(full_model), "--url", f"{llama.address}/v1", *FEW]) == 0
    assert "5 of 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:{port}/v1", "can't be reached: "),
        ("http://127.0.0.1:port/v1", "can't be reached: "),
        ("http://[::1/v1", "can't be reached: "),
        ("http://127.0.0.1:99999/v1", "can't be reached: "),
        ("127.0.0.1:8000", "Give a URL like http://127.0.0.1:8080/v1"),
        ("file:///etc/passwd", "Give a URL like http://127.0.0.1:8080/v1"),
    ],
)
def test_a_server_that_is_away_is_a_sentence(url, sentence, full_model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert main(["compare", str(full_model), "--url", url.format(port=port), *FEW]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b""])
def test_a_server_of_another_protocol_is_a_sentence(said, full_model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert main(["compare", str(full_model), "--url", url, *FEW]) == 1
        thread.join()
    assert "can't be reached: " in capsys.readouterr().err


def test_a_space_in_front_is_no_difference(full_model):
    """llama.cpp keeps the space that SentencePiece puts in front of an answer."""
    model, chat_format = load_tuned(full_model, dtype=torch.float32, quantized=False), ChatFormat.load(full_model)

    class Spaced(Remote):
        def answer(self, messages, max_tokens):
            ours = Answerer(model, chat_format, Sampling(max_tokens)).answer([messages])[0].answer
            return RemoteAnswer(" " + ours, True, None, None)

    results = list(compare(model, chat_format, Spaced("", "m"), [], 4))
    assert [result.equal for result in results] == [True] * 3
    assert all(result.spaced and result.verdict.startswith("equal except for a leading space: ") for result in results)


def test_a_wrong_path_is_a_sentence(full_model, capsys):
    with served(full_model) as url:
        assert main(["compare", str(full_model), "--url", url.removesuffix("/v1"), *FEW]) == 1
    assert "Give a --url to which /models can be added" in capsys.readouterr().err


def test_a_server_that_lists_no_models_is_asked_by_name(full_model, capsys):
    with served(full_model) as url:
        assert main(["compare", str(full_model), "--url", url.removesuffix("/v1"), "--name", "m", *FEW]) == 1
    said = capsys.readouterr().err
    assert "warning: " in said and "/models returned status 404" in said and "refused a prompt" in said


def result(tokens, ours, theirs, *, theirs_tokens=None, goes_on=False, lead=None):
    return Result("p", tokens, theirs_tokens, ours, theirs, goes_on, lead, None)


@pytest.mark.parametrize(
    ("results", "cause"),
    [
        ([result(50, "a", "b", theirs_tokens=51, lead=3.0)], "the chat template"),
        ([result(50, "a", "ab", goes_on=True), result(60, "a", "a")], "a stop token"),
        ([result(50, "a", "b", lead=0.01), result(3000, "a", "a")], "precision"),
        (
            [result(50, "a", "a"), result(3000, "a", "b", lead=4.0)],
            "positions. All answers to prompts of up to 2,048 tokens are equal",
        ),
        ([result(50, "a", "b", lead=4.0)], "different weights"),
    ],
    ids=["template", "stop", "precision", "positions", "weights"],
)
def test_the_usual_cause(results, cause):
    assert cause in usual_cause(results)
