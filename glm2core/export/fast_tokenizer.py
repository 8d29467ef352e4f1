"""Convert a SentencePiece tokenizer.model to a tokenizer.json with the same ids, for transformers without remote code.

One difference is inherent in tokenizer.json: if a user's text contains the spelling of a special token, this
spelling is encoded as the special token. The spellings `sop` and `eop` also occur in ordinary words such as
"soprano", so these two tokens are spelled `<sop>` and `<eop>`, as in GLM-4. The ids of these tokens do not change.
"""

from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from glm2core.errors import UserError
from glm2core.text.prompt import PREFIX_TOKENS, PairFormat, TemplateName, jinja_template
from glm2core.text.tokenizer import SpTokenizer

SPELLED = {"sop": "<sop>", "eop": "<eop>"}

_SPACE = "\u2581"
_BPE = 2
_NORMAL_PIECE = 1


def fast_tokenizer(
    tokenizer: SpTokenizer, template: TemplateName, pair_format: PairFormat, *, max_length: int
) -> PreTrainedTokenizerFast:
    """Build the tokenizer for transformers, with its chat template.

    Args:
        max_length: the model's number of positions.

    Raises:
        UserError: the SentencePiece model is not a BPE model.
    """
    prefix = tuple(SPELLED.get(token, token) for token in PREFIX_TOKENS[pair_format])
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(tokenizer, prefix),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=jinja_template(template, prefix),
    )


def special_spellings(tokenizer: SpTokenizer) -> dict[str, int]:
    """Return the id of each special token, keyed by its spelling in tokenizer.json."""
    return {SPELLED.get(name, name): token for name, token in tokenizer.special_ids.items()}


def _backend(tokenizer: SpTokenizer, prefix: tuple[str, ...]) -> Tokenizer:
    messages: Any = sentencepiece_model_pb2  # its classes are created at run time
    proto = messages.ModelProto.FromString(tokenizer.model)
    if proto.trainer_spec.model_type != _BPE:
        raise UserError("tokenizer.model is not BPE. Only BPE tokenizers, like the ChatGLM2 family's, can be exported.")
    backend = Tokenizer(_bpe(proto))
    backend.normalizer = _normalizer(proto.normalizer_spec)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spellings = special_spellings(tokenizer)
    for name in sorted(spellings, key=spellings.__getitem__):
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])
        assert backend.token_to_id(name) == spellings[name]
    backend.post_processor = TemplateProcessing(
        single=[*prefix, "$A"],
        pair=[*prefix, "$A", "$B", "</s>"],
        special_tokens=[(name, spellings[name]) for name in {*prefix, "</s>"}],
    )
    return backend


def _bpe(proto: Any) -> BPE:
    """Merge only normal pieces, because SentencePiece never produces `<0x0A>` or `</s>` from a text."""
    vocabulary = {piece.piece: token for token, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    never_merged = {piece.piece for piece in proto.pieces if piece.type != _NORMAL_PIECE}
    return BPE(
        vocabulary,
        generate_merges(vocabulary, scores, never_merged),
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """Add a leading space to every text, because `SpTokenizer` accepts only models that add one."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence([*steps, normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
