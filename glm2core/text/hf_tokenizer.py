"""`ChatGLM2Tokenizer` wraps the tokenizer of `tokenizer.py` in transformers' interface, without changing any ids."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Message
from glm2core.errors import UserError
from glm2core.family import template_of
from glm2core.text.prompt import PREFIX_TOKENS, STOP_TOKENS, PairFormat, TemplateName, jinja_template
from glm2core.text.tokenizer import EOS, MODEL_FILE, SPECIAL_TOKENS, SpTokenizer


class ChatGLM2Tokenizer(PreTrainedTokenizer):
    """Turns texts and chats into ids and back, as transformers' generate, pipelines and Trainer require.

    Calling the tokenizer puts `[gMASK] sop` in front of a text and pads on the left. As in `tokenizer.py`, a special
    token that is spelled out in a text stays ordinary text. `apply_chat_template` gives the ids used in training.

    Load tokenizers with this class, because AutoTokenizer works only for exported folders. For the folders of tuned and
    released models, AutoTokenizer builds a different tokenizer.

    Args:
        vocab_file: path of a tokenizer.model.
        prompt_template: the template for chats; None = the template of the model in the file's folder.
        pair_format: which special tokens a prompt begins with.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}  # noqa: RUF012 (the base class does the same)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        prompt_template: TemplateName | None = None,
        pair_format: PairFormat = "glm2",
        **kwargs: Any,
    ) -> None:
        path = Path(vocab_file)
        self.sp = SpTokenizer(path.read_bytes(), str(path))
        self.prompt_template = prompt_template or template_of(path.parent)[0]
        self.pair_format = pair_format
        _require_known("prompt_template", self.prompt_template, STOP_TOKENS)
        _require_known("pair_format", pair_format, PREFIX_TOKENS)
        kwargs.pop("auto_map", None)  # if saved, it would send AutoTokenizer to the released code
        kwargs |= {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        kwargs["extra_special_tokens"] = list(SPECIAL_TOKENS)
        kwargs["added_tokens_decoder"] = {
            token: AddedToken(name, special=True, normalized=False) for name, token in self.sp.special_ids.items()
        }
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = jinja_template(self.prompt_template, PREFIX_TOKENS[pair_format])
        super().__init__(vocab_file=vocab_file, prompt_template=self.prompt_template, pair_format=pair_format, **kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp.size

    def __len__(self) -> int:
        return len(self.sp)

    def get_vocab(self) -> dict[str, int]:
        return {self.sp.piece(token): token for token in range(len(self.sp))}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """The pieces of a text. A special token that is spelled out in the text stays ordinary text."""
        return self.sp.pieces(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop A`; with a second sequence, `[gMASK] sop A B </s>`."""
        ids = self.sp.prefix_ids(self.pair_format) + list(token_ids_0)
        return ids if token_ids_1 is None else [*ids, *token_ids_1, EOS]

    def get_special_tokens_mask(
        self, token_ids_0: list, token_ids_1: list | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 at special tokens, 0 elsewhere."""
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        special = set(self.sp.special_ids.values())
        return [int(token in special) for token in ids]

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[Message] | list[list[Message]],
        tools: list[Any] | None = None,
        documents: list[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Turn a chat into ids with `prompt.py`.

        The chat is not rendered as text first, so special tokens spelled out in a user's input stay ordinary text.
        `add_generation_prompt` changes nothing for chatglm2, because a chat that ends with a question already ends
        where the answer begins. With `tokenize=False`, or if a `chat_template` is given, transformers renders the chat.
        """
        if not tokenize or chat_template is not None:
            return super().apply_chat_template(
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=tokenize,
                **kwargs,
            )
        batched = bool(conversation) and isinstance(conversation[0], list)
        chats = conversation if batched else [conversation]
        ids = [self._chat_ids(chat) for chat in chats]
        encoded: BatchEncoding = self(
            ids if batched else ids[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return encoded if return_dict else encoded["input_ids"]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write tokenizer.model."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{MODEL_FILE}"
        path.write_bytes(self.sp.model)
        return (str(path),)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp.decode([self.sp.piece_id(token) for token in tokens], skip_special=False)

    def _chat_ids(self, messages: Any) -> list[int]:
        _require_turns(messages)
        ids = self.sp.prompt_ids(messages, self.prompt_template, self.pair_format)
        if messages[-1]["role"] == ASSISTANT:
            ids += self.sp.encode(messages[-1]["content"])
        return ids

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # type: ignore[override]
        # Encode to ids first, because a piece may be spelled like a special token ("sop" in "soprano")
        return super()._encode_plus(self._as_ids(text), self._as_ids(text_pair), **kwargs)

    def _as_ids(self, text: Any) -> Any:
        if isinstance(text, str):
            return self.sp.encode(text) or text
        if isinstance(text, (list, tuple)) and text and isinstance(text[0], (str, list, tuple)):
            return [self._as_ids(entry) for entry in text]
        return text

    def _decode(  # type: ignore[override]
        self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        return self.sp.decode(np.atleast_1d(token_ids).tolist(), skip_special=skip_special_tokens)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp.piece_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp.piece(index)


def _require_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}; got {value!r}. Fix tokenizer_config.json.")


def _require_turns(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[roles[:1] == [SYSTEM] :]
    if not turns or turns != [(USER, ASSISTANT)[place % 2] for place in range(len(turns))]:
        raise UserError(
            "a chat may begin with one system message, and then needs user and assistant messages in turn. Its roles "
            f"are {', '.join(roles) or 'none'}. Merge successive messages of the same role, and remove other roles."
        )
