"""Exactly which ids are supervised, for any conversation, wording, pair format and loss_on."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.pairs import Limits, PairBatch, PairBuilder
from glm2core.text.tokenizer import EOS, UNKNOWN
from tests.text.conftest import NOT_BLANK
from tests.text.test_prompt import chat

LONG = 10**6
ANSWERED = st.builds(
    lambda texts, system: Conversation(chat(*sum(texts, ()), system=system)),
    st.lists(st.tuples(NOT_BLANK, NOT_BLANK), min_size=1, max_size=4),
    st.none() | NOT_BLANK,
)
TEMPLATES = st.sampled_from(["chatglm2", "chatglm3"])
FORMATS = st.sampled_from(["glm2", "llama"])
LOSSES = st.sampled_from(["last", "every"])


def rows_of(batch: PairBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = zip(batch.ends, batch.ends[1:], strict=False)
    return [(batch.input_ids[start:end], batch.labels[start:end]) for start, end in pairs]


def answers_of(conversation: Conversation) -> list[str]:
    return [m["content"] for m in conversation.messages if m["role"] == "assistant"]


def supervised_texts(tokenizer, labels: np.ndarray) -> list[str]:
    """The supervised labels, cut behind each end of turn."""
    kept = labels[labels != IGNORED]
    turns = np.split(kept, np.flatnonzero(kept == EOS) + 1)
    assert len(turns[-1]) == 0, "the last supervised label is an end of turn"
    return [tokenizer.decode(turn[:-1]) for turn in turns[:-1]]


@given(
    conversations=st.lists(ANSWERED, min_size=1, max_size=4), template=TEMPLATES, pair_format=FORMATS, data=st.data()
)
def test_the_supervised_ids_are_exactly_the_responses(tokenizer, conversations, template, pair_format, data):
    losses = [data.draw(LOSSES) for _ in conversations]
    limits = [Limits(LONG, LONG, loss_on) for loss_on in losses]
    batch = PairBuilder(tokenizer, template, pair_format, threads=1).build(conversations, limits)
    for row, (ids, labels) in enumerate(rows_of(batch)):
        conversation, loss_on = conversations[row], losses[row]
        answers = answers_of(conversation)
        expected = answers if loss_on == "every" else answers[-1:]
        assert supervised_texts(tokenizer, labels) == expected
        # No id is supervised twice: the labels are the answers' ids and an end each, no more
        tokens = sum(len(tokenizer.encode(answer)) + 1 for answer in expected)
        assert np.count_nonzero(labels != IGNORED) == tokens
        # A label is its token, except for ends of earlier turns, which the prompt's text does not have
        other = (labels != IGNORED) & (labels != ids)
        assert (labels[other] == EOS).all()
        assert np.count_nonzero(other) == len(expected) - 1
        assert (ids[-1], labels[-1]) == (EOS, EOS)
        prompt = ids[: batch.source_lengths[row]].tolist()
        assert prompt[: 2 if pair_format == "glm2" else 1] == tokenizer.prefix_ids(pair_format)
        if loss_on == "last":
            assert prompt == tokenizer.prompt_ids(conversation.messages, template, pair_format)
        assert tokenizer.decode(ids).replace(" ", "") == "".join(
            tokenizer.decode(tokenizer.prompt_ids(conversation.messages, template)) + answers[-1]
        ).replace(" ", "")


def test_one_row_by_hand(tokenizer):
    """Two rounds, every answer supervised: the layout that the module's docstring describes."""
    special = tokenizer.special_ids
    encode = tokenizer.encode
    batch = PairBuilder(tokenizer).build([Conversation(chat("q1", "a1", "q2", "a2"))], [Limits(LONG, LONG, "every")])
    first, second = encode("[Round 1]\n\n问：q1\n\n答："), encode("\n\n[Round 2]\n\n问：q2\n\n答：")[1:]
    ids = [special["[gMASK]"], special["sop"], *first, *encode("a1"), *second, *encode("a2"), EOS]
    assert batch.input_ids.tolist() == ids
    ignored = [IGNORED] * (2 + len(first))
    assert batch.labels.tolist() == [*ignored, *encode("a1"), EOS, *[IGNORED] * (len(second) - 1), *encode("a2"), EOS]
    assert (batch.input_ids.dtype, batch.labels.dtype) == (np.int32, np.int32)


def test_segments_start_at_rounds_and_lines_but_not_between_question_and_answer(tokenizer):
    talk = [*chat("first\nsecond", "one"), *chat("third", "two\nthree")]
    batch = PairBuilder(tokenizer).build([Conversation(talk)] * 2, [Limits(LONG, LONG, "every")] * 2)
    segments, ends = batch.segments(tokenizer.newline)
    for row, (ids, _) in enumerate(rows_of(batch)):
        starts = segments[ends[row] : ends[row + 1]].tolist()
        lines = [tokenizer.decode(ids[a:b]).strip() for a, b in itertools.pairwise([*starts, len(ids)])]
        assert lines == ["[Round 1]", "问：first", "second\n\n答： one", "[Round 2]", "问：third\n\n答： two", "three"]
        assert starts[0] == 0
        assert all(ids[start - 1] == tokenizer.newline for start in starts[1:])


def test_a_real_unknown_token_stays_supervised(tokenizer):
    """A base whose tokenizer has no byte fallback gives <unk>, which has padding's id."""

    class WithoutFallback(type(tokenizer)):
        def encode_batch(self, texts, threads=None):
            return [np.where(ids >= 259, ids, UNKNOWN).astype(np.int32) for ids in super().encode_batch(texts, threads)]

    strange = WithoutFallback(tokenizer.model)
    batch = PairBuilder(strange).build([Conversation(chat("问", "\U00013000"))], [Limits(LONG, LONG, "last")])
    supervised = batch.labels[batch.labels != IGNORED].tolist()
    assert supervised.count(UNKNOWN) >= 4
    assert supervised[-1] == EOS


@given(conversation=ANSWERED, template=TEMPLATES, loss_on=LOSSES, target=st.integers(1, 30))
def test_a_cut_answer_has_no_end_and_is_counted(tokenizer, conversation, template, loss_on, target):
    batch = PairBuilder(tokenizer, template, threads=1).build([conversation], [Limits(LONG, target, loss_on)])
    answers = [tokenizer.encode(answer) for answer in answers_of(conversation)]
    supervised = answers if loss_on == "every" else answers[-1:]
    expected = [[*ids, EOS] if len(ids) < target else ids[:target] for ids in supervised]
    assert batch.labels[batch.labels != IGNORED].tolist() == [token for ids in expected for token in ids]
    assert batch.cuts["responses_cut"] == sum(len(ids) >= target for ids in supervised)
    assert (batch.labels[-1] == EOS) == (len(answers[-1]) < target)


def test_limits_and_loss_differ_from_row_to_row(tokenizer):
    conversations = [Conversation(chat("q", "a" * 50, "r", "b" * 50))] * 3
    limits = [Limits(LONG, 5, "last"), Limits(LONG, LONG, "every"), Limits(LONG, 5, "every")]
    batch = PairBuilder(tokenizer).build(conversations, limits)
    assert batch.cuts["responses_cut"] == 3
    alone = [PairBuilder(tokenizer).build(conversations[:1], [limit]) for limit in limits]
    assert batch.input_ids.tolist() == np.concatenate([one.input_ids for one in alone]).tolist()
    assert batch.labels.tolist() == np.concatenate([one.labels for one in alone]).tolist()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_empty_batch(tokenizer, threads):
    batch = PairBuilder(tokenizer, threads=threads).build([], [])
    assert (len(batch.rows), len(batch.input_ids), batch.ends.tolist()) == (0, 0, [0])
