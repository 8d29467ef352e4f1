"""ChatGLM2ForCausalLM: the released network as a transformers model.

Shapes: `B` batch, `T` tokens, `S` positions used for a loss or logits, `C` hidden channels, `V` vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from glm2core.errors import UserError
from glm2core.hardware import product_dtype, sent
from glm2core.model.config import ChatGLM2Config
from glm2core.model.layers import GLMBlock, PrefixEncoder, RMSNorm, SelfAttention, pick
from glm2core.model.linear import Linear
from glm2core.model.loss import supervised_loss, supervised_positions
from glm2core.model.misfits import refuse_misfits, refuse_prefix_alone
from glm2core.model.quantization import keep_frozen_weights, make_quantizable
from glm2core.model.rope import RotaryEmbedding


class ChatGLM2PreTrainedModel(PreTrainedModel):
    """Class attributes that transformers requires."""

    config: ChatGLM2Config
    config_class = ChatGLM2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The released checkpoints store the frequencies; here they are computed (rope.py says why).
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq$"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}  # noqa: RUF012


class Embedding(nn.Module):
    """Maps token ids to vectors, in a module of its own so that its parameter has the released name."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.word_embeddings(input_ids)


class Encoder(nn.Module):
    """The blocks, and the norm after the last block."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class ChatGLM2Model(ChatGLM2PreTrainedModel):
    """Maps token ids to hidden states."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config.rope_parameters, config.rotary_channels)
        self.encoder = Encoder(config)
        # The layer is here because its released name is `transformer.output_layer`; the outer model applies it.
        self.output_layer = Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.prefix_encoder = PrefixEncoder(config) if config.pre_seq_len else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embedding.word_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        kept: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute the last hidden state [B, T, C], or [B, S, C] with `kept`.

        The other arguments are described at `ChatGLM2ForCausalLM.forward`.

        Args:
            kept: positions [B or 1, S] whose hidden state is needed; None = all positions. With `kept`, the last block
                computes only these positions, but it computes the keys and values of all positions.
        """
        _shape_and_device(input_ids, inputs_embeds)
        hidden = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = hidden.to(product_dtype(hidden.dtype, hidden.device))  # everything after it has this dtype too
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache = past_key_values
        if self.prefix_encoder is not None:
            cache = self._with_prefix(cache, hidden)
            attention_mask = _seen(attention_mask, self.prefix_encoder.length)
        attention_mask = _without_right_padding(attention_mask, cache)
        position_ids = self._positions(position_ids, attention_mask, cache, hidden)
        mask = self._causal_mask(hidden, attention_mask, cache)
        rotations = self.rotary_pos_emb(position_ids)
        last = len(self.encoder.layers) - 1
        for index, layer in enumerate(self.encoder.layers):
            asked = kept if index == last else None
            if self.training and layer.gradient_checkpointing and cache is not None:
                # Recomputation must not find a changed cache, so a prefix is passed as tensors
                held: Any = cache.layers[index]
                seen: dict[str, Any] = {"before": (held.keys, held.values)}
            else:
                seen = {"past_key_values": cache}
            hidden = layer(hidden, rotations, mask, kept=asked, **seen, **kwargs)
        hidden = self.encoder.final_layernorm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _causal_mask(self, hidden: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Any:
        """The mask in the attention implementation's format; None = causal attention without padded keys.

        The mask is causal by index, not by position, because positions may have gaps.
        """
        static = cache is not None and cache.is_compileable  # it holds keys beyond the tokens seen
        if attention_mask is None and self.config._attn_implementation == "sdpa" and not static:
            return None
        return create_causal_mask(self.config, hidden, attention_mask, cache, allow_is_causal_skip=not static)

    def _with_prefix(self, cache: Cache | None, hidden: Tensor) -> Cache:
        """The cache, including the learned prefix."""
        assert self.prefix_encoder is not None
        cache = DynamicCache() if cache is None else cache
        if cache.get_seq_length() == 0:
            for index, (key, value) in enumerate(self.prefix_encoder(hidden.shape[0])):
                cache.update(key.to(hidden.dtype), value.to(hidden.dtype), index)
        return cache

    def _positions(
        self, position_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None, hidden: Tensor
    ) -> Tensor:
        """The positions [B or 1, T]. A P-tuning prefix takes up no positions, although peft counts it."""
        tokens = hidden.shape[1]
        seen = int(cache.get_seq_length()) if cache is not None else 0
        prefix = (self.config.pre_seq_len or 0) if seen else 0
        if position_ids is not None:
            # peft put the prefix into the cache, and added its length to the positions.
            return position_ids if self.prefix_encoder is not None else position_ids - prefix
        if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[1] == seen + tokens:
            counted = attention_mask.long().cumsum(-1)[:, -tokens:] - 1 - prefix
            return counted.clamp(min=0)
        return torch.arange(seen - prefix, seen - prefix + tokens, device=hidden.device)[None]


class ChatGLM2ForCausalLM(ChatGLM2PreTrainedModel, GenerationMixin):
    """The network with its output layer and its loss."""

    def __init__(self, config: ChatGLM2Config, *, to_be_quantized: bool = False) -> None:
        super().__init__(config)
        self.transformer = ChatGLM2Model(config)
        if to_be_quantized:
            make_quantizable(self)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, value: Any) -> None:
        self.transformer.output_layer = value

    def train(self, mode: bool = True) -> "ChatGLM2ForCausalLM":
        """Set the mode of all modules, except that 4-bit linears stay in train mode (quantization.py says why)."""
        super().train(mode)
        keep_frozen_weights(self)
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_by_row: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits, or the loss if there are labels.

        Args:
            input_ids: [B, T]; or `inputs_embeds` [B, T, C] instead.
            attention_mask: [B, number of tokens so far]; 1 = a token, 0 = padding on either side; None = no padding.
            position_ids: [B, T], where gaps are allowed; None = positions are counted with the mask.
            past_key_values: keys and values of earlier tokens, extended in place.
            labels: [B, T], IGNORED (-100) where nothing is supervised; label t is predicted from token t - 1. With
                labels on the CPU, nothing has to wait for a GPU.
            num_items_in_batch: divisor of the summed loss, used only with labels; None = the number of supervised
                positions, which gives the mean.
            use_cache: None = the value in the config, but False with labels and in train mode.
            logits_to_keep: number of last positions whose logits are computed (0 = all), or the positions [N]; used
                only without labels.
            loss_by_row: whether to return a loss for each row [B], which is the row's sum divided by
                `num_items_in_batch`; used only with labels.

        Returns:
            Without labels, the output contains `logits` [B, T, V]. With labels, the output contains `loss` (a scalar)
            but no logits, because the output layer is applied only to supervised positions.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        shape, device = _shape_and_device(input_ids, inputs_embeds)
        kept: Tensor | None
        if labels is not None:
            if labels.shape != shape:
                raise UserError(f"labels must have the input's shape {list(shape)}, but theirs is {list(labels.shape)}")
            # This runs on the labels' device, because counting them on a GPU would wait for all its earlier work.
            positions, targets = supervised_positions(labels)
            kept = sent(positions, device)
        else:
            kept = _last_positions(logits_to_keep, shape[1], device)
        early = self._last_block_may_skip(kept, shape[1], kwargs)
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            kept=kept if early else None,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if kept is not None and not early:
            hidden = pick(hidden, kept)  # [B, S, C]
        loss = logits = None
        if labels is not None:
            layer = self.transformer.output_layer
            loss = supervised_loss(hidden, targets, layer, num_items_in_batch, by_row=loss_by_row)
        else:
            logits = self.transformer.output_layer(hidden)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _last_block_may_skip(self, kept: Tensor | None, tokens: int, kwargs: dict[str, Any]) -> bool:
        """Whether the last block computes only `kept`; for more than half of the tokens, its mask costs too much."""
        recorded = any(
            kwargs.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        few = kept is not None and 2 * kept.shape[1] <= tokens
        return few and not recorded and self.config._attn_implementation == "sdpa"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a network as transformers does, but reject it if tensors do not fit.

        Raises:
            UserError: tensors are missing, are unexpected or have the wrong shape; the error names them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("quantization_config") is not None:
            kwargs["to_be_quantized"] = True  # passed on to __init__
        place = pretrained_model_name_or_path or kwargs["config"].name_or_path  # their place if only tensors are given
        kwargs["ignore_mismatched_sizes"] = True  # misfits are rejected below, with all their names
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        network, info = loaded
        if network.config.pre_seq_len:
            refuse_prefix_alone(info["missing_keys"], place)
        rule = f"{place}: the weights do not fit its config.json"
        refuse_misfits(info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"], rule)
        return loaded if wants_info else network


def _shape_and_device(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[torch.Size, torch.device]:
    """B and T of the given input, and its device."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise UserError("give either input_ids or inputs_embeds, but not both")
    return given.shape[:2], given.device


def _last_positions(logits_to_keep: int | Tensor, tokens: int, device: torch.device) -> Tensor | None:
    """Positions [1, S]; None = all."""
    if isinstance(logits_to_keep, Tensor):
        return logits_to_keep.to(device)[None]
    if logits_to_keep == 0 or logits_to_keep >= tokens:
        return None
    return torch.arange(tokens - logits_to_keep, tokens, device=device)[None]


def _without_right_padding(attention_mask: Tensor | None, cache: Cache | None) -> Tensor | None:
    """None if every row's padding comes after its tokens, because causal attention already hides such padding.

    Outputs at padding are never used, and kernels are faster without a mask.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return attention_mask
    if cache is not None and cache.get_seq_length():
        # Right padding of an earlier chunk comes before this chunk's tokens.
        return None if bool(attention_mask.all()) else attention_mask
    starts_again = attention_mask[:, 1:] > attention_mask[:, :-1]
    return attention_mask if bool(starts_again.any()) else None


def _seen(attention_mask: Tensor | None, prefix: int) -> Tensor | None:
    """The mask [B, T] with `prefix` ones prepended."""
    if attention_mask is None or attention_mask.ndim != 2:
        return attention_mask
    return torch.nn.functional.pad(attention_mask, (prefix, 0), value=1)
