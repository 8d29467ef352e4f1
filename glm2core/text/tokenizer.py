"""The tokenizer, which needs no torch.

The vocabulary consists of SentencePiece's pieces, followed by ChatGLM's special tokens.

With the released tokenizer.model (64,789 pieces), the special ids are: [MASK] 64789, [gMASK] 64790,
[sMASK] 64791, sop 64792, eop 64793, chatglm3's <|system|> 64794 ... <|observation|> 64797, <unk> 0,
<s> 1, </s> 2, padding 0. No text ever becomes a special token, whatever it spells, because special
ids are added only by name. SentencePiece writes a space as U+2581, so this character is decoded as a space.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from glm2core.conversation import Message
from glm2core.errors import UserError, printable
from glm2core.files import refuse_lfs_pointer, write_json
from glm2core.params.model_files import TOKENIZER_FILE
from glm2core.text.prompt import PREFIX_TOKENS, STOP_TOKENS, PairFormat, Part, TemplateName, jinja_template, render

MODEL_FILE = "tokenizer.model"

SPECIAL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
UNKNOWN, BOS, EOS, PAD = 0, 1, 2, 0

_NEWLINE_PIECE = "<0x0A>"
_FIXED_PIECES = 3 + 256  # <unk> <s> </s> and one piece per byte
_LONGEST_TRAINING_LINE = 4096
_MOST_BYTES = 64 << 20  # the released file has one MB


class SpTokenizer:
    """Turns texts into ids and back.

    Args:
        model: the content of a tokenizer.model.
        name: the file's name, for error messages.

    Raises:
        UserError: the content is not a SentencePiece model, or the model does not encode line ends separately.
    """

    def __init__(self, model: bytes, name: str = MODEL_FILE) -> None:
        self.model = model
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
            line_ends = self._sp.encode("a\n\nb")[-3:-1], self._sp.encode("\n")[1:]
            self._sp.id_to_piece(list(range(self._sp.get_piece_size())))  # raises if a piece is not text
        except (RuntimeError, OSError, ValueError) as error:  # ValueError if a piece or the message is not text
            reason = printable(str(error))[:200]
            raise UserError(f"{name} is not a SentencePiece model ({reason}). Fetch it again.") from None
        self.size: int = self._sp.get_piece_size()
        self.special_ids = {token: self.size + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.special_ids |= {"<unk>": UNKNOWN, "<s>": BOS, "</s>": EOS}
        self.newline: int = self._sp.piece_to_id(_NEWLINE_PIECE)
        # Prompts are encoded in parts, which are split in front of line ends
        if line_ends != ([self.newline] * 2, [self.newline]):
            raise UserError(
                f"{name} does not encode a line end as {_NEWLINE_PIECE} alone, so it is not a ChatGLM2 tokenizer."
            )

    @classmethod
    def load(cls, folder: Path) -> "SpTokenizer":
        """Read the `tokenizer.model` in a folder.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        path = folder / MODEL_FILE
        if not path.is_file():
            raise UserError(f"{folder} has no {MODEL_FILE}. Copy the one that the weights were released with.")
        refuse_lfs_pointer(path)
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes, which no vocabulary needs. Fetch it again.")
        return cls(path.read_bytes(), str(path))

    def save(self, folder: Path, template: TemplateName, pair_format: PairFormat = "glm2") -> None:
        """Write `tokenizer.model` and the `tokenizer_config.json` that `hf_tokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.model)
        write_json(folder / TOKENIZER_FILE, tokenizer_config(template, pair_format))

    def __len__(self) -> int:
        """Number of pieces and special tokens; an embedding may have more rows (65,024 in the released models)."""
        return self.size + len(SPECIAL_TOKENS)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ids: list[int] = self._sp.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """The ids of each text as int32. `threads` (None = one per core) changes only the time, not the result."""
        arrays: list[np.ndarray] = self._sp.encode(list(texts), num_threads=threads or -1, return_type="numpy")
        return arrays

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids.

        Ids beyond the vocabulary are left out. Special tokens are left out if `skip_special` is set;
        otherwise they are spelled out.
        """
        texts, run = [], []
        for token in map(int, ids):
            if token < self.size and token not in (BOS, EOS):
                run.append(token)
            elif not skip_special and (name := self._special_names.get(token)):
                texts += [self._sp.decode(run), name] if run else [name]
                run = []
        return "".join([*texts, self._sp.decode(run)] if run else texts)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, spelled as in SentencePiece."""
        found: list[str] = self._sp.encode(text, return_type=str)
        return found

    def piece(self, token: int) -> str:
        """The piece or special token of an id, spelled as in SentencePiece."""
        return self._special_names.get(token) or str(self._sp.id_to_piece(token))

    def piece_id(self, piece: str) -> int:
        """The id of a piece or special token; for any other string, the id of <unk>."""
        found = self.special_ids.get(piece)
        return int(self._sp.piece_to_id(piece)) if found is None else found

    def part_ids(self, part: Part) -> list[int]:
        """The ids of one part of a prompt."""
        ids = self.encode(part.text)[part.continues :]
        return [self.special_ids[part.special], *ids] if part.special else ids

    def prefix_ids(self, pair_format: PairFormat = "glm2") -> list[int]:
        return [self.special_ids[token] for token in PREFIX_TOKENS[pair_format]]

    def prompt_ids(
        self, messages: list[Message], template: TemplateName, pair_format: PairFormat = "glm2"
    ) -> list[int]:
        """The ids of a whole prompt, from the first special token up to where the answer begins."""
        parts = render(messages, template)
        return self.prefix_ids(pair_format) + [token for part in parts for token in self.part_ids(part)]

    def require_rows(self, rows: int, template: TemplateName, pair_format: PairFormat, place: Path) -> None:
        """Check that an embedding of `rows` rows has a row for every id in prompts and answers.

        Raises:
            UserError: there are too few rows, so the tokenizer.model in `place` belongs to a different network.
        """
        used = (*PREFIX_TOKENS[pair_format], *STOP_TOKENS[template])
        needed = 1 + max(self.size - 1, *(self.special_ids[token] for token in used))
        if needed > rows:
            raise UserError(
                f"{place}: {MODEL_FILE} has {needed:,} tokens, but the network has {rows:,} rows "
                f"(padded_vocab_size in its config). Copy the {MODEL_FILE} that the weights were released with."
            )

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {token: name for name, token in self.special_ids.items()}


def tokenizer_config(template: TemplateName, pair_format: PairFormat) -> dict[str, Any]:
    """The content of tokenizer_config.json; `prompt_template` names the template, and `chat_template` spells it out."""
    return {
        "tokenizer_class": "ChatGLM2Tokenizer",
        "prompt_template": template,
        "pair_format": pair_format,
        "chat_template": jinja_template(template, PREFIX_TOKENS[pair_format]),
        "padding_side": "left",
        "model_max_length": 32768,
    }


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> SpTokenizer:
    """Train a small BPE tokenizer that works like the released one.

    Byte fallback lets the tokenizer encode every text. The tokenizer does not normalize texts, so that decoding
    restores them exactly. Each digit and each line end is a piece of its own. The same texts give the same bytes of
    tokenizer.model.

    Args:
        vocabulary_size: number of pieces; the tokenizer has fewer if the texts are too short for this number.
    """
    lines = [line for text in texts for line in _training_lines(text)]
    if not any(lines):
        raise UserError("no text to train a tokenizer on: the training split is empty.")
    # Rare characters use byte fallback, so lines are split at them and none of them becomes a piece
    rare = _rare_characters(lines, (vocabulary_size - _FIXED_PIECES) // 2)
    lines = [part for line in lines for part in line.translate(rare).split("\n") if part]
    try:
        model = _train(lines, vocabulary_size)
    except RuntimeError as error:
        model = _train(lines, _largest_size(error))
    return SpTokenizer(model)


def _train(lines: list[str], size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,  # the number of threads is written into the model
        unk_id=UNKNOWN,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _training_lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        for start in range(0, len(line), _LONGEST_TRAINING_LINE):
            yield line[start : start + _LONGEST_TRAINING_LINE]


def _rare_characters(lines: list[str], room: int) -> dict[int, str]:
    """A translation table that turns all but the `room` most frequent characters into line ends."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    return {ord(character): "\n" for character in by_frequency[room:]}


def _largest_size(error: RuntimeError) -> int:
    """The largest vocabulary that SentencePiece could fill, read from its error message."""
    words = str(error).rstrip(". ").split()
    if not words or not words[-1].isdigit():
        raise error
    return int(words[-1])
