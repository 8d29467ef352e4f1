"""Padding, caches, generation, training modes: the same numbers every way."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from glm2core.labels import IGNORED
from glm2core.model import ChatGLM2ForCausalLM
from tests.model.networks import small_network

NEAR = {"rtol": 0, "atol": 2e-5}
LENGTHS = (24, 9, 15)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def prompts() -> list[Tensor]:
    """Unequal prompts, without pad or stop ids."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 320, (1, length), generator=generator) for length in LENGTHS]


def padded(side: str) -> tuple[Tensor, Tensor]:
    """The prompts as one batch, and its mask, [3, 24] each."""
    longest = max(LENGTHS)
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts()):
        length = prompt.shape[1]
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = prompt[0], 1
    return ids, mask


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_is_its_rows(network: ChatGLM2ForCausalLM, side: str, implementation: str) -> None:
    network.set_attn_implementation(implementation)
    ids, mask = padded(side)
    logits = network(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, prompt in enumerate(prompts()):
        assert_close(logits[row][mask[row].bool()], network(prompt).logits[0], **NEAR)


@given(st.lists(st.integers(1, 24), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_chunks_with_a_cache_are_the_whole(sizes: list[int]) -> None:
    network = small_network()
    ids, mask = padded("left")
    whole = network(ids, attention_mask=mask).logits[mask.bool()]
    cache, parts, start = DynamicCache(), [], 0
    while start < ids.shape[1]:
        end = min(start + sizes[len(parts) % len(sizes)], ids.shape[1])
        out = network(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        parts.append(out.logits)
        start = end
    assert_close(torch.cat(parts, dim=1)[mask.bool()], whole, **NEAR)


@torch.no_grad()
def test_right_padding_in_the_cache_stays_hidden(network: ChatGLM2ForCausalLM) -> None:
    """A right-padded batch may be continued: the padding between is masked, positions continue."""
    ids, mask = padded("right")
    cache = DynamicCache()
    network(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    following = torch.tensor([[7], [8], [9]])
    longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), dim=1)
    logits = network(following, attention_mask=longer, past_key_values=cache, use_cache=True).logits[:, -1]
    for row, prompt in enumerate(prompts()):
        alone = network(torch.cat((prompt, following[row : row + 1]), dim=1)).logits[0, -1]
        assert_close(logits[row], alone, **NEAR)


@torch.no_grad()
def test_static_cache(network: ChatGLM2ForCausalLM) -> None:
    ids = prompts()[0]
    cache = StaticCache(network.config, max_cache_len=64)
    first = network(ids[:, :10], past_key_values=cache, use_cache=True).logits
    rest = network(ids[:, 10:], past_key_values=cache, use_cache=True).logits
    assert_close(torch.cat((first, rest), dim=1), network(ids).logits, **NEAR)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_positions_with_gaps_stay_causal_by_index(network: ChatGLM2ForCausalLM, implementation: str) -> None:
    network.set_attn_implementation(implementation)
    ids = prompts()[0]
    positions = torch.arange(ids.shape[1]) + 500 * (torch.arange(ids.shape[1]) > 11)
    positions[-3:] = 0  # even where they fall back
    logits = network(ids, position_ids=positions[None]).logits
    cut = network(ids[:, :20], position_ids=positions[None, :20]).logits
    assert_close(logits[:, :20], cut, **NEAR)
    assert not logits.allclose(network(ids).logits, atol=1e-2)
    changed = ids.clone()
    changed[0, 0] = 3
    assert not network(changed, position_ids=positions[None]).logits[0, -1].allclose(logits[0, -1], atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_by_batch_is_generated_one_by_one(network: ChatGLM2ForCausalLM, beams: int) -> None:
    ids, mask = padded("left")
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    together = network.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    for row, prompt in enumerate(prompts()):
        alone = network.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, prompt.shape[1] :]
        answer = together[row][: len(alone)]
        assert answer.tolist() == alone.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_p": 0.9},
        {"do_sample": False, "prefill_chunk_size": 7},
    ],
    ids=["greedy", "beam", "sampled", "chunked prefill"],
)
@pytest.mark.parametrize("prefix", [None, 8])
def test_generated_with_a_cache_is_generated_without(options: dict[str, object], prefix: int | None) -> None:
    network = small_network(pre_seq_len=prefix)
    ids, mask = padded("left")
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        extra = options if use_cache else {k: v for k, v in options.items() if k != "prefill_chunk_size"}
        runs.append(network.generate(ids, attention_mask=mask, max_new_tokens=16, use_cache=use_cache, **extra))
    assert runs[0].tolist() == runs[1].tolist()
    assert runs[0].shape[1] > ids.shape[1] + 4


def test_checkpointed_blocks_give_the_same_gradients(network: ChatGLM2ForCausalLM) -> None:
    ids, mask = padded("right")
    labels = ids.masked_fill(mask == 0, IGNORED)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(ids, attention_mask=mask, labels=labels).loss.backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    network.train()
    plain = gradients()
    network.gradient_checkpointing_enable({"use_reentrant": False})
    assert_close(gradients(), plain)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_last_block_that_skips_unasked_positions_gives_the_same_gradients(side: str) -> None:
    """eager attention never skips; few labels make sdpa skip."""
    ids, mask = padded(side)
    labels = torch.full_like(ids, -100)
    labels[:, -3:] = ids[:, -3:].masked_fill(mask[:, -3:] == 0, -100)
    labels[0, 4] = ids[0, 4]
    found = []
    for implementation in ("sdpa", "eager"):
        network = small_network().train()
        network.set_attn_implementation(implementation)
        loss = network(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        found.append([loss, *(p.grad for p in network.parameters())])
    assert_close(found[0], found[1])


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 2, 5])])
def test_a_later_chunk_of_a_prompt_gives_the_logits_that_are_asked(
    network: ChatGLM2ForCausalLM, kept: int | Tensor
) -> None:
    ids = torch.cat([prompts()[1], prompts()[1]], dim=1)
    whole = network(ids).logits[:, 9:]
    cache = DynamicCache()
    network(ids[:, :9], past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = network(ids[:, 9:], past_key_values=cache, use_cache=True, logits_to_keep=kept).logits
    assert_close(found, whole[:, -kept:] if isinstance(kept, int) else whole[:, kept])


def test_right_padding_changes_no_loss(network: ChatGLM2ForCausalLM) -> None:
    ids, mask = padded("right")
    labels = ids.masked_fill(mask == 0, IGNORED)
    together = network(ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss
    alone = sum(network(prompt, labels=prompt, num_items_in_batch=1).loss for prompt in prompts())
    assert_close(together, alone, rtol=1e-6, atol=0)


def test_a_prefix_is_trained_with_recomputed_blocks() -> None:
    found = []
    for recompute in (False, True):
        network = small_network(pre_seq_len=8).train()
        if recompute:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        loss = network(prompts()[0], labels=prompts()[0]).loss
        loss.backward()
        prefix = network.transformer.prefix_encoder.embedding.weight.grad
        assert prefix.abs().max() > 0
        found.append((loss.detach(), prefix))
    assert_close(found[0], found[1])


@torch.no_grad()
def test_outputs_of_any_transformers_model(network: ChatGLM2ForCausalLM) -> None:
    network.set_attn_implementation("eager")
    ids = prompts()[1]
    out = network(ids, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 4
    assert len(out.attentions) == 3
    assert out.attentions[0].shape == (1, 4, 9, 9)
    assert_close(network.get_output_embeddings()(out.hidden_states[-1]), out.logits)
    assert_close(network(inputs_embeds=network.get_input_embeddings()(ids)).logits, out.logits)
    assert_close(network(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    assert network(ids, return_dict=False)[0].equal(out.logits)
    assert network(ids, labels=ids).logits is None
