"""`chat`: talks with a model over several rounds and streams its answers."""

import argparse
import sys
from collections.abc import Iterator

from glm2core.cli.answering import load_answerer
from glm2core.conversation import ASSISTANT, SYSTEM, USER, Message
from glm2core.errors import UserError
from glm2core.evaluation.generation import Answerer
from glm2core.model.adapters import network_parameters
from glm2core.serving.stream import AnswerStream

CLEAR, STOP = "clear", "stop"
_CONVERSES = 100_000_000  # parameters; smaller networks only find and copy


def run(arguments: argparse.Namespace) -> None:
    answerer = load_answerer(arguments, _note)
    _note(f"{arguments.model} is ready. Type {CLEAR} to forget the rounds so far, or {STOP} to quit.")
    parameters = network_parameters(arguments.model, arguments.base)
    if parameters < _CONVERSES:
        _note(
            f"With {parameters / 1e6:.1f} million parameters it can find and copy parts of a text, but not converse. "
            f"To see it do so: python -m glm2core predict {arguments.model} data/examples/needles.jsonl"
        )
    chat = Chat(answerer, arguments.system)
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "stop":
                return
            case "clear":
                chat.clear()
                _note("cleared")
            case question:
                _answer(chat, question)


class Chat:
    """A chat and its rounds so far."""

    def __init__(self, answerer: Answerer, system: str | None = None) -> None:
        self._answerer = answerer
        self._start: list[Message] = [{"role": SYSTEM, "content": system}] if system else []
        self.messages = list(self._start)

    def clear(self) -> None:
        """Forget all rounds; the system message stays."""
        self.messages = list(self._start)

    def ask(self, question: str) -> str:
        """Answer a question with the earlier rounds as context; the answer is streamed to stdout.

        If the rounds do not all fit into the model's positions, the oldest ones are forgotten.

        Raises:
            UserError: the question does not fit even without earlier rounds; those rounds are kept.
        """
        asked = [*self.messages, {"role": USER, "content": question}]
        fitting = self._answerer.drop_oldest_rounds(asked)
        if len(fitting) < len(asked):
            _note(f"the oldest {(len(asked) - len(fitting)) // 2} rounds no longer fit and are forgotten")
        [answer] = self._answerer.answer([fitting], AnswerStream(self._answerer.chat_format, _write))
        _write("\n")
        self.messages = [*fitting, {"role": ASSISTANT, "content": answer.answer}]
        return answer.answer


def _answer(chat: Chat, question: str) -> None:
    try:
        chat.ask(question)
    except UserError as error:  # concerns this question only
        _note(str(error))
    except KeyboardInterrupt:
        _write("\n")
        _note(f"interrupted: this round is forgotten. Type {STOP} to quit.")


def _lines() -> Iterator[str]:
    """The lines that the user types, with line editing and history in a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  # gives input() its line editing

    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
