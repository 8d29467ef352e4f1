"""`serve`: the openai client gets the same answers as `chat`; unsupported requests are refused with a sentence."""

import socket
import time

import openai
import pytest
import torch

from glm2core.cli.main import main
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.model.adapters import load_tuned
from glm2core.text.chat_format import ChatFormat
from tests.serving.server import post, served

CHAT = [
    {"role": "user", "content": "日本的首都是哪里？"},
    {"role": "assistant", "content": "东京。"},
    {"role": "user", "content": "Does it lie at the sea?"},
]


def own_answer(folder, tokens):
    model = load_tuned(folder, dtype=torch.float32, notice=lambda sentence: None)
    return Answerer(model, ChatFormat.load(folder), Sampling(tokens)).answer([CHAT])[0].answer


@pytest.fixture(scope="module")
def server(full_model):
    with served(full_model) as url:
        yield url


@pytest.fixture(scope="module")
def name(server):
    return openai.OpenAI(base_url=server, api_key="none").models.list().data[0].id


@pytest.mark.parametrize("kind", ["full_model", "prefix_model"])
def test_the_openai_client_gets_the_answer_that_chat_gives(kind, request):
    folder = request.getfixturevalue(kind)
    with served(folder) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        whole = client.chat.completions.create(model=str(folder), messages=CHAT, max_tokens=8, temperature=0)
        stream = client.chat.completions.create(
            model=str(folder), messages=CHAT, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        events = list(stream)
    expected = own_answer(folder, 8)
    assert whole.choices[0].message.content == expected != ""
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.prompt_tokens == len(ChatFormat.load(folder).prompt_ids(CHAT))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage


def test_sampling_follows_its_seed(server, name):
    body = {"model": name, "messages": CHAT, "max_tokens": 8, "temperature": 1.5, "top_p": 1.0}
    answers = [post(server, body | {"seed": seed})[1]["choices"][0]["message"]["content"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_log_probabilities_of_tokens(server, name, full_model):
    body = {"model": name, "messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    content = post(server, body)[1]["choices"][0]["logprobs"]["content"]
    chat_format = ChatFormat.load(full_model)
    model = load_tuned(full_model, dtype=torch.float32, notice=lambda sentence: None)
    ids = torch.tensor([chat_format.prompt_ids(CHAT)])
    with torch.inference_mode():
        best = model(input_ids=ids).logits[0, -1].log_softmax(-1).topk(2)
    found = [entry["logprob"] for entry in content[0]["top_logprobs"]]
    assert len(content) == 3
    assert found == pytest.approx(best.values.tolist(), abs=1e-4)
    assert content[0]["token"] == chat_format.tokenizer.piece(int(best.indices[0]))


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"model": "gpt-4"}, 404, "no model 'gpt-4' here"),
        ({"n": 2}, 400, "n is 2, which is not served here"),
        ({"tools": [{"type": "function"}]}, 400, "tools is"),
        ({"stop": ["\n"]}, 400, "stop is"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is 0.5"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is"),
        ({"max_tokens": 100_000}, 400, "may have 100,000, which together exceed this server's context of 8,192"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"top_logprobs": 2}, 400, "top_logprobs is allowed only if logprobs is true"),
        ({"stream": True, "logprobs": True}, 400, "logprobs can't be streamed"),
        ({"stream": True, "max_tokens": 100_000}, 400, "this server's context"),
        ({"top_k": 5}, 400, "top_k: is not served here; leave it out"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": "Hi"}, 400, "messages: "),
        ({"messages": CHAT[:2]}, 400, "the roles are user, assistant"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half a character"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    ],
)
def test_what_is_not_served_is_refused(change, status, sentence, server, name):
    found, answer = post(server, {"model": name, "messages": CHAT, "max_tokens": 2} | change)
    assert found == status
    assert sentence in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b'{"model": "' + b"x" * 1_000_001 + b'"}', 413, "more than 1,000,000 bytes"),
    ],
    ids=["cut", "deep", "list", "too large"],
)
def test_bodies_that_are_none(body, status, sentence, server):
    found, answer = post(server, body)
    assert found == status
    assert sentence in answer["error"]["message"]


def test_other_places_are_named(server):
    status, answer = post(server, {}, path="/completions")
    assert status == 404
    assert "/v1/completions is not served here; GET /health" in answer["error"]["message"]


def test_a_client_that_leaves_makes_room_for_the_next(server, name):
    client = openai.OpenAI(base_url=server, api_key="none")
    stream = client.chat.completions.create(model=name, messages=CHAT, stream=True, temperature=1.5, top_p=1.0)
    next(iter(stream))
    stream.close()
    started = time.monotonic()
    status, _ = post(server, {"model": name, "messages": CHAT, "max_tokens": 2})
    assert status == 200
    assert time.monotonic() - started < 20  # 8,000 tokens would take longer


def test_a_busy_port_is_a_sentence(full_model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", str(full_model), "--port", str(port)]) == 1
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_a_context_beyond_the_model_is_a_sentence(full_model, capsys):
    assert main(["serve", str(full_model), "--port", "0", "--max-context", "9000", "--dtype", "float32"]) == 1
    assert "--max-context is 9,000, but the model has 8,192 positions" in capsys.readouterr().err
