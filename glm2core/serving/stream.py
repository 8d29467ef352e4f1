"""Stream an answer's text while it is generated."""

from collections.abc import Callable

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from glm2core.text.chat_format import ChatFormat


class AnswerStream(BaseStreamer):
    """Streams an answer.

    transformers' TextStreamer is not used, because it loses a new line's indentation with SentencePiece tokenizers.

    Args:
        write: a function that is called with each new piece of text.
    """

    def __init__(self, chat_format: ChatFormat, write: Callable[[str], object]) -> None:
        self._format, self._write = chat_format, write
        self._ids: list[int] | None = None  # None until the prompt has passed
        self._shown = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt [1, T] in the first call, and one token [1] in each later call."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        # Characters with missing bytes decode to U+FFFD until they are complete
        self._show(self._text().rstrip("\ufffd"))

    def end(self) -> None:
        self._show(self._text())
        self._ids, self._shown = None, 0

    def _text(self) -> str:
        ids = [token for token in self._ids or [] if token not in self._format.stop_ids]
        return self._format.tokenizer.decode(ids)

    def _show(self, text: str) -> None:
        self._write(text[self._shown :])
        self._shown = max(self._shown, len(text))
