"""Defines how to prompt a model: its tokenizer, prompt template, pair format, and the tokens that end an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm2core.conversation import USER, Message
from glm2core.errors import UserError
from glm2core.family import template_of
from glm2core.params.model_files import TOKENIZER_FILE, TokenizerFile, read_config_file, read_model_file
from glm2core.text.prompt import STOP_TOKENS, PairFormat, Part, TemplateName, render
from glm2core.text.tokenizer import SpTokenizer


@dataclass(frozen=True)
class ChatFormat:
    """Turns conversations into the ids of prompts for one model."""

    tokenizer: SpTokenizer
    template: TemplateName
    pair_format: PairFormat = "glm2"

    @classmethod
    def load(cls, folder: Path) -> "ChatFormat":
        """Read the tokenizer and the prompt settings in a model's folder.

        Raises:
            UserError: the folder does not exist, holds a different kind of network, or has no tokenizer.model.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. Name a model's folder; `dvc repro` makes models/tuned.")
        read_config_file(folder)  # report a different kind of network before trying its tokenizer
        tokenizer = SpTokenizer.load(folder)
        values = read_model_file(folder / TOKENIZER_FILE, TokenizerFile) or TokenizerFile()
        return cls(tokenizer, template_of(folder)[0], values.pair_format)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return [self.tokenizer.special_ids[token] for token in STOP_TOKENS[self.template]]

    @property
    def newline(self) -> int:
        """The token of a line end."""
        return self.tokenizer.newline

    def require_rows(self, rows: int, folder: Path) -> None:
        """Raise a UserError if the network's embedding has too few `rows` for the tokenizer in `folder`."""
        self.tokenizer.require_rows(rows, self.template, self.pair_format, folder)

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The ids of the prompt, up to where the answer begins."""
        return self.tokenizer.prompt_ids(messages, self.template, self.pair_format)

    def count_tokens(self, text: str) -> int:
        """Number of tokens in the whole prompt for a user's message."""
        return len(self.prompt_ids([{"role": USER, "content": text}]))

    def encode_questions(self, context: str, questions: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Encode the prompts for several questions about one context, but encode the context only once.

        This works because a prompt may be split in front of a line end without changing its ids (prompt.py).

        Args:
            context: text that ends in a line end.

        Returns:
            The ids that all prompts begin with, and the remaining ids of each prompt.
        """
        tails = []
        context_ids: list[int] = []
        for question in questions:
            before, after = self._cut(context, question)
            context_ids = context_ids or self.tokenizer.prefix_ids(self.pair_format) + self._ids(before)
            tails.append(self._ids(after))
        common = _common_length(tails)
        return context_ids + tails[0][:common], [tail[common:] for tail in tails]

    def _cut(self, context: str, question: str) -> tuple[list[Part], list[Part]]:
        parts = render([{"role": USER, "content": context + question}], self.template)
        index = next(index for index, part in enumerate(parts) if context in part.text)
        part = parts[index]
        place = part.text.index(context) + len(context) - 1
        before, after = part._replace(text=part.text[:place]), Part(part.text[place:], continues=True)
        return [*parts[:index], before], [after, *parts[index + 1 :]]

    def _ids(self, parts: Iterable[Part]) -> list[int]:
        return [token for part in parts for token in self.tokenizer.part_ids(part)]


def _common_length(tails: Sequence[Sequence[int]]) -> int:
    """Number of ids that all tails share at their start; at least one id of each tail is left over."""
    shortest = min(map(len, tails)) - 1
    return next((i for i in range(shortest) if len({tail[i] for tail in tails}) > 1), shortest)
