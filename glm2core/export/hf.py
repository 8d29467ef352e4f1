"""Export a tuned or released model as `GlmForCausalLM`, which other tools load without remote code.

The result is checked before it gets its final name: transformers' own classes load it from disk, and
they must compute the same ids for texts and chats, and the same logits, as the original model.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GlmForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.export.fast_tokenizer import fast_tokenizer
from glm2core.export.samples import CHATS, MIXED_TEXTS, sample_texts
from glm2core.export.source import refuse_existing, refuse_prefix, stored_dtype
from glm2core.files import atomic_path, write_json
from glm2core.model.adapters import load_tuned
from glm2core.model.convert_glm import glm_config, glm_state_dict
from glm2core.model.linear import wide_products
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import BOS, PAD

_CHECKED_TOKENS = 48
# Largest logit difference, relative to the largest logit, that rounding through all layers explains.
# With a tensor in the wrong place, or a different RoPE, the difference is about 1.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def export_hf(
    folder: Path, out: Path, *, dtype: torch.dtype | None = None, base: Path | None = None, notice: Notice = print
) -> None:
    """Export the model in `folder` to `out`, which appears only when it is complete.

    Args:
        folder: a folder with full weights (released or tuned) or with an adapter, which is merged into its unquantized
            base.
        out: the new folder, which must not exist yet.
        dtype: dtype of the exported weights; None = the dtype in which the weights are stored.
        base: where an adapter's base is now; None = it was not moved.

    Raises:
        UserError: `out` exists, `folder` holds no model, `folder` holds a P-tuning prefix, or a check fails.
    """
    refuse_existing(out)
    chat_format = ChatFormat.load(folder)
    refuse_prefix(folder)
    network = _merged(folder, dtype or stored_dtype(folder, base), base, notice)
    chat_format.require_rows(network.config.padded_vocab_size, folder)
    with atomic_path(out) as partial:
        partial.mkdir()
        expected = _sample_logits(network)
        _write_model(network, chat_format, partial)
        _write_tokenizer(chat_format, network.config.seq_length, partial)
        del network  # memory holds only one copy of a large model
        check_tokenizer(AutoTokenizer.from_pretrained(partial), chat_format)
        _check_logits(partial, expected)
    notice(f"checked: ids of {MIXED_TEXTS:,} mixed texts and all pieces, chat ids, logits")


def check_tokenizer(exported: PreTrainedTokenizerBase, chat_format: ChatFormat) -> None:
    """Compare the exported tokenizer with the original on every piece, on mixtures of pieces, and on chats.

    Raises:
        UserError: the two tokenizers give a text different ids; the error message shows the first such text.
    """
    tokenizer = chat_format.tokenizer
    for text in sample_texts(tokenizer):
        found = exported.encode(text, add_special_tokens=False)
        if found != tokenizer.encode(text):
            raise UserError(_mismatch("the text", text, found, tokenizer.encode(text)))
    for chat in CHATS:
        ids = chat_format.prompt_ids(chat)
        found = exported.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        if found != ids:
            raise UserError(_mismatch("the chat", str(chat), found, ids))


def _merged(folder: Path, dtype: torch.dtype, base: Path | None, notice: Notice) -> ChatGLM2ForCausalLM:
    """Load the network in `dtype`, and merge its adapter. Quantized weights would round the update away."""
    model = load_tuned(folder, dtype=dtype, quantized=False, base=base, notice=notice)
    if not isinstance(model, PeftModel):
        return cast(ChatGLM2ForCausalLM, model)
    notice(f"merging the adapter into its base in {str(dtype).removeprefix('torch.')}")
    return cast(ChatGLM2ForCausalLM, model.merge_and_unload(safe_merge=True))


def _write_model(network: ChatGLM2ForCausalLM, chat_format: ChatFormat, folder: Path) -> None:
    config = glm_config(network.config)
    stop_ids = chat_format.stop_ids
    config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    config.dtype = network.dtype
    with torch.device("meta"):
        exported = GlmForCausalLM(config)
    exported.load_state_dict(glm_state_dict(network.state_dict(), network.config), strict=True, assign=True)
    exported.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=config.eos_token_id, pad_token_id=PAD, do_sample=False
    )
    exported.save_pretrained(folder)


def _write_tokenizer(chat_format: ChatFormat, positions: int, folder: Path) -> None:
    fast_tokenizer(
        chat_format.tokenizer, chat_format.template, chat_format.pair_format, max_length=positions
    ).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    # transformers 4 knows this name as well
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _mismatch(what: str, text: str, found: object, expected: object) -> str:
    return (
        f"the exported tokenizer encodes {what} {text!r} as {found}, but tokenizer.model encodes it as {expected}. "
        "Nothing was written, because this tokenizer.model has a feature that tokenizer.json lacks. Use the model with "
        "chat or predict."
    )


@torch.inference_mode()
def _sample_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits [T, V] for made-up ids at positions that are spread over the model's whole range."""
    config = model.config
    ids = torch.arange(_CHECKED_TOKENS)[None] * 977 % config.vocab_size
    positions = torch.linspace(0, config.max_position_embeddings - 1, _CHECKED_TOKENS).long()[None]
    # Without the mask transformers takes gaps in the positions for boundaries between documents
    with wide_products():
        logits = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits
    return logits[0].float()


def _check_logits(folder: Path, expected: torch.Tensor) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, info = loaded
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the exported weights don't fit GlmForCausalLM ({wrong[0]}). Nothing was written.")
    difference = (_sample_logits(model) - expected).abs().max() / expected.abs().max()
    tolerance = _TOLERANCE[model.dtype]
    if not difference <= tolerance:  # also true for NaN
        raise UserError(
            "the exported model computes different logits from the original model: the largest difference is "
            f"{difference:.1e} times the largest logit, above the limit of {tolerance:.0e}. Nothing was written. Check "
            "that the weights are finite, or export with --dtype float32."
        )
