"""chat: history, clear, stop, and answers that appear as they are made."""

import subprocess
import sys

import pytest
import torch

from glm2core.cli.chat import Chat
from glm2core.errors import UserError
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.model.adapters import load_tuned
from glm2core.serving.stream import AnswerStream
from glm2core.text.chat_format import ChatFormat
from tests.cli.conftest import PROJECT


def chat_with(model, text):
    command = [sys.executable, "-m", "glm2core", "chat", str(model), "--max-new-tokens", "6", "--dtype", "float32"]
    return subprocess.run(command, input=text, cwd=PROJECT, capture_output=True, text=True)


def answerer(folder, tokens=6, **sampling):
    return Answerer(load_tuned(folder, dtype=torch.float32), ChatFormat.load(folder), Sampling(tokens, **sampling))


def test_piped_lines_are_answered_until_stop(lora_model):
    done = chat_with(lora_model, "hello\n\nclear\nhello\nstop\nnever asked\n")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second != ""  # clear forgot the first round
    assert "cleared" in done.stderr
    assert "but not converse" in done.stderr and f"predict {lora_model} data/examples/needles.jsonl" in done.stderr


def test_a_missing_model_is_a_sentence(tmp_path):
    done = chat_with(tmp_path / "nothing", "hello\n")
    assert done.returncode == 1
    assert "is not a folder" in done.stderr and "Traceback" not in done.stderr


def test_earlier_rounds_are_part_of_the_prompt(full_model, capsys):
    talker = answerer(full_model)
    chat = Chat(talker, system="Be brief.")
    capsys.readouterr()
    first = chat.ask("一加一?")
    chat.ask("and why?")
    assert [message["content"] for message in chat.messages[:4]] == ["Be brief.", "一加一?", first, "and why?"]
    expected = talker.answer([chat.messages[:4]])[0].answer
    assert chat.messages[4]["content"] == expected
    assert capsys.readouterr().out.splitlines() == [*first.splitlines(), *expected.splitlines()]
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_the_oldest_rounds_are_forgotten_when_they_no_longer_fit(full_model, capsys):
    talker = answerer(full_model)
    talker._room = 80
    chat = Chat(talker)
    for number in range(6):
        chat.ask(f"question {number}")
    assert chat.messages[-2]["content"] == "question 5"
    assert len(talker.chat_format.prompt_ids(chat.messages[:-1])) <= 80
    assert "no longer fit" in capsys.readouterr().err
    with pytest.raises(UserError, match="positions"):
        chat.ask("long " * 400)


@pytest.mark.parametrize(
    "text", ["a\n    indented\n\n  b", "你好 \U0001f600\U0001f600 é", "  two  spaces ", "\ufffd x"]
)
def test_a_stream_shows_all_of_an_answer_and_no_half_character(text, full_model):
    chat_format = ChatFormat.load(full_model)
    shown: list[str] = []
    stream = AnswerStream(chat_format, shown.append)
    stream.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in [*chat_format.tokenizer.encode(text), chat_format.stop_ids[0]]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(shown) == text
    assert not any(piece.startswith("\ufffd") for piece in shown) or "\ufffd" in text


def test_sampling_follows_its_seed(full_model):
    talker = answerer(full_model, tokens=12, temperature=1.0, top_p=1.0)
    question = [[{"role": "user", "content": "hello"}]]
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(talker.answer(question)[0].answer)
    assert answers[0] == answers[1] != answers[2]


def test_a_batch_gives_what_its_conversations_give_alone(full_model):
    talker = answerer(full_model, tokens=10)
    chats = [
        [{"role": "user", "content": text}] for text in ("hi", "a much longer question than the other one", "你好")
    ]
    assert talker.answer(chats) == [talker.answer([chat])[0] for chat in chats]
