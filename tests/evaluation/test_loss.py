"""Held-out loss equals the network's own for any batching; positions are counted correctly."""

import math

import numpy as np
import pytest
import torch

from glm2core.evaluation.answers import answer_rows
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.evaluation.loss import held_out_loss, loss_by_position, token_losses
from glm2core.labels import IGNORED
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.text.chat_format import ChatFormat
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.tokenizer import SpTokenizer
from tests.evaluation.conftest import write_random_rows


@pytest.fixture(scope="module")
def dataset(tokenizer: SpTokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenizedDataset:
    path = tmp_path_factory.mktemp("tokenized") / "test.parquet"
    write_random_rows(path, tokenizer)
    return TokenizedDataset.load(path)


def own_losses(model: ChatGLM2ForCausalLM, dataset: TokenizedDataset) -> list[tuple[float, int]]:
    """The network's own loss of each row and its supervised tokens."""
    found = []
    for index in range(len(dataset)):
        input_ids, labels, _ = (torch.from_numpy(part.astype(np.int64))[None] for part in dataset.row(index))
        with torch.inference_mode():
            found.append((float(model(input_ids=input_ids, labels=labels).loss), int((labels != IGNORED).sum())))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_token_losses_are_the_networks_own(
    model: ChatGLM2ForCausalLM, dataset: TokenizedDataset, batch_tokens: int
) -> None:
    seen: list[int] = []
    losses = token_losses(model, dataset, batch_tokens, seen.append)
    own = own_losses(model, dataset)
    assert sum(seen) == len(dataset)
    assert [len(row) for row in losses] == [count for _, count in own]
    np.testing.assert_allclose([row.mean() for row in losses], [loss for loss, _ in own], rtol=2e-5)
    total = held_out_loss(losses)
    assert total.mean == pytest.approx(sum(loss * count for loss, count in own) / total.tokens, rel=2e-5)
    assert total.perplexity == pytest.approx(math.exp(total.mean))


@pytest.mark.parametrize("chunk", [16, 1000])
def test_loss_by_position_counts_every_answer_once(
    model: ChatGLM2ForCausalLM, dataset: TokenizedDataset, chunk: int
) -> None:
    alone = token_losses(model, dataset, 1000)
    buckets = loss_by_position(model, dataset, alone, 10_000, chunk)
    assert [bucket.start for bucket in buckets] == [0, 256][: len(buckets)]
    assert sum(bucket.there.tokens for bucket in buckets) == dataset.supervised_tokens
    assert sum(bucket.alone.total for bucket in buckets) == pytest.approx(sum(row.sum() for row in alone))
    whole = loss_by_position(model, dataset, alone, 10_000, 10_000)
    for bucket, expected in zip(buckets, whole, strict=True):
        assert bucket.there.total == pytest.approx(expected.there.total, rel=1e-5)
        assert bucket.alone == expected.alone


def test_one_row_loses_the_same_there_and_alone(model: ChatGLM2ForCausalLM, dataset: TokenizedDataset) -> None:
    alone = token_losses(model, dataset, 1000)
    first = int(np.random.default_rng(0).permutation(len(dataset))[0])
    length = int(dataset.lengths[first])
    (bucket,) = loss_by_position(model, dataset, alone, length, 7)
    assert bucket.there.tokens == bucket.alone.tokens == len(alone[first])
    assert bucket.there.total == pytest.approx(bucket.alone.total, rel=1e-5)


def test_answers_are_the_same_alone_and_in_batches(
    model: ChatGLM2ForCausalLM, dataset: TokenizedDataset, tokenizer: SpTokenizer
) -> None:
    def answers(batch_size: int) -> dict[str, tuple[str, str, str]]:
        answerer = Answerer(model, ChatFormat(tokenizer, "chatglm2"), Sampling(max_new_tokens=6))
        batches = answer_rows(answerer, dataset, rows=8, batch_size=batch_size)
        return {a.id: (a.prompt, a.reference, a.answer) for batch in batches for a in batch}

    found = answers(5)
    assert found == answers(1)
    assert len(found) == 8
    assert len({answer for _, _, answer in found.values()}) > 1
    for row_id, (prompt, reference, _) in found.items():
        input_ids, _, _ = dataset.row(int(row_id.removeprefix("row")))
        start = len(input_ids) // 2
        assert (prompt, reference) == (tokenizer.decode(input_ids[:start]), tokenizer.decode(input_ids[start:]))
