"""Prompts over their limit: what goes, what never goes, and that it is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.pairs import Limits, PairBatch, PairBuilder
from glm2core.text.tokenizer import EOS
from tests.text.conftest import NOT_BLANK
from tests.text.test_pairs import ANSWERED, LONG, LOSSES, TEMPLATES, answers_of, supervised_texts
from tests.text.test_prompt import chat

QUESTION = "What is it?"
TEXT = "\n".join(f"line {i} of the text" for i in range(60))


def build(tokenizer, conversation, length, truncation="rounds", template="chatglm2", loss_on="last") -> PairBatch:
    builder = PairBuilder(tokenizer, template, "glm2", truncation, threads=1)
    return builder.build([conversation], [Limits(length, LONG, loss_on)])


@given(conversation=ANSWERED, template=TEMPLATES, loss_on=LOSSES, length=st.integers(5, 150))
def test_rounds_keeps_the_limit_the_question_and_all_that_fits(tokenizer, conversation, template, loss_on, length):
    messages = conversation.messages
    whole = build(tokenizer, conversation, LONG, template=template, loss_on=loss_on)
    batch = build(tokenizer, conversation, length, template=template, loss_on=loss_on)
    if whole.source_lengths[0] <= length:
        assert batch.labels.tolist() == whole.labels.tolist()
        return
    # The shortest that dropping rounds can make
    system = [m for m in messages if m["role"] == "system"]
    alone = build(tokenizer, Conversation(system + messages[-2:]), LONG, template=template, loss_on=loss_on)
    if alone.source_lengths[0] > length:  # so the question itself is cut, in its middle, or its row dropped
        assert len(batch.dropped) == 1 or batch.cuts["texts_cut_in_the_middle"] == 1
        assert all(n <= length for n in batch.source_lengths)
        return
    assert not batch.dropped
    rounds = (len(messages) - len(system)) // 2
    dropped = batch.cuts["rounds_dropped"]
    for first, fits in ((dropped, True), (dropped - 1, False)):
        kept = Conversation(system + messages[len(system) + 2 * first :])
        same = build(tokenizer, kept, LONG, template=template, loss_on=loss_on)
        assert (same.source_lengths[0] <= length) == fits
        if fits:  # exactly the prompt of a conversation that had only those rounds
            assert batch.input_ids.tolist() == same.input_ids.tolist()
            assert batch.labels.tolist() == same.labels.tolist()
    assert 0 < dropped < rounds
    supervised = answers_of(conversation)[dropped:] if loss_on == "every" else answers_of(conversation)[-1:]
    assert supervised_texts(tokenizer, batch.labels) == supervised
    assert batch.cuts["prompts_without_oldest_rounds"] == 1


@pytest.mark.parametrize("template", ["chatglm2", "chatglm3"])
@pytest.mark.parametrize("length", [60, 80, 81, 200])
def test_the_text_loses_its_middle_and_the_question_nothing(tokenizer, template, length):
    messages = chat("old " * 80, "gone", f"{QUESTION}\n{TEXT}", "An answer.", system="Be brief.")
    batch = build(tokenizer, Conversation(messages, len(QUESTION)), length, template=template)
    assert batch.source_lengths.tolist() == [length]
    prompt = tokenizer.decode(batch.input_ids[:length])
    assert "old" not in prompt
    assert "Be brief." in prompt
    left = prompt.split(f"{QUESTION}\n")[1].strip()
    assert left.startswith("line 0")
    assert left.removesuffix("答：").strip().endswith("of the text")
    assert supervised_texts(tokenizer, batch.labels) == ["An answer."]
    assert batch.cuts == {"texts_cut_in_the_middle": 1, "prompts_without_oldest_rounds": 1, "rounds_dropped": 1}


def test_a_question_without_a_text_loses_its_middle(tokenizer):
    batch = build(tokenizer, Conversation(chat(f"START {TEXT} END", "a")), 60)
    prompt = tokenizer.decode(batch.input_ids[:60])
    assert prompt.startswith("[Round 1]\n\n问：START line 0")
    assert prompt.endswith("END\n\n答：")


@pytest.mark.parametrize(("chars", "length"), [(len(QUESTION) + 400, 100), (None, 15)])
def test_a_question_that_leaves_no_room_is_dropped(tokenizer, chars, length):
    messages = chat(f"{QUESTION}{'x' * 400}\n{TEXT}", "a")
    batch = build(tokenizer, Conversation(messages, chars), length)
    assert [reason for _, reason in batch.dropped] == ["the question alone is over max_source_length"]
    assert (len(batch.rows), len(batch.input_ids)) == (0, 0)


@given(conversation=ANSWERED, template=TEMPLATES, loss_on=LOSSES, length=st.integers(3, 60))
def test_left_right_and_drop(tokenizer, conversation, template, loss_on, length):
    whole = build(tokenizer, conversation, LONG, template=template, loss_on=loss_on)
    source = int(whole.source_lengths[0])
    target = whole.input_ids[source:].tolist()
    got = {name: build(tokenizer, conversation, length, name, template, loss_on) for name in ("left", "right", "drop")}
    if source <= length:
        for batch in got.values():
            assert batch.input_ids.tolist() == whole.input_ids.tolist()
        return
    prefix, rest = whole.input_ids[:2].tolist(), whole.input_ids[:source].tolist()
    assert got["left"].input_ids.tolist() == prefix + rest[source - (length - 2) :] + target
    assert got["right"].input_ids.tolist() == rest[:length] + target
    assert got["left"].labels[:2].tolist() == [IGNORED, IGNORED]
    expected = whole.labels[source - (length - 2) :].tolist()
    read = 0  # the rest of an answer that begins before the cut is not taught as an answer
    while read < length - 2 and expected[read] != IGNORED:
        read += 1
    assert got["left"].labels[2:].tolist() == [IGNORED] * read + expected[read:]
    taught = supervised_texts(tokenizer, got["left"].labels)
    assert taught == answers_of(conversation)[-len(taught) :]
    assert got["right"].labels[:length].tolist() == whole.labels[:length].tolist()
    assert (got["left"].cuts["prompts_cut_left"], got["right"].cuts["prompts_cut_right"]) == (1, 1)
    assert [reason for _, reason in got["drop"].dropped] == ["the prompt is over max_source_length"]
    assert len(got["drop"].rows) == 0


def test_long_rows_between_short_ones_keep_order_and_counts(tokenizer):
    short, long = Conversation(chat("q", "a")), Conversation(chat("x" * 90, "b" * 90))
    lost = Conversation(chat("x" * 90 + "\ny", "c" * 90), 90)
    rows = [long, short, lost, short, long, lost]
    limits = [Limits(60, 20, "last")] * len(rows)
    batch = PairBuilder(tokenizer, threads=1).build(rows, limits)
    assert batch.rows.tolist() == [0, 1, 3, 4]
    assert [drop.row for drop in batch.dropped] == [2, 5]
    assert batch.cuts == {"texts_cut_in_the_middle": 2, "responses_cut": 2}
    parts = [PairBuilder(tokenizer, threads=1).build([row], limits[:1]) for row in (long, short, short, long)]
    assert batch.input_ids.tolist() == np.concatenate([part.input_ids for part in parts]).tolist()
    assert batch.labels.tolist() == np.concatenate([part.labels for part in parts]).tolist()
    assert batch.source_lengths.tolist() == [part.source_lengths[0] for part in parts]
    assert batch.labels[batch.ends[2] - 1] == EOS


@given(question=NOT_BLANK, text=NOT_BLANK, length=st.integers(10, 80))
def test_the_question_is_kept_whole_or_the_row_goes(tokenizer, question, text, length):
    conversation = Conversation(chat(f"{question}\n{text * 9}", "a"), len(question))
    batch = build(tokenizer, conversation, length)
    if batch.dropped:
        return
    prompt = tokenizer.decode(batch.input_ids[: batch.source_lengths[0]])
    assert prompt.startswith(f"[Round 1]\n\n问：{question}\n")
    assert prompt.endswith("\n\n答：")
    assert batch.source_lengths[0] <= length or batch.cuts == {}
