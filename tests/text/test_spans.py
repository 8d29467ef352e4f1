"""The worked example of spans.py's docstring, with its figures."""

from glm2core.conversation import Conversation
from glm2core.labels import IGNORED
from glm2core.text.pairs import Limits, PairBuilder
from glm2core.text.tokenizer import EOS


def turns(*texts):
    roles = ("user", "assistant") * len(texts)
    return Conversation([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])


def test_two_rows_as_the_docstring_draws_them(tokenizer):
    builder = PairBuilder(tokenizer)
    plan = builder.plan([turns("Tea?", "Yes"), turns("2 + 2", "4", "+ 1", "5")], [Limits(300, 200, "every")] * 2)
    assert plan.texts == ["\n\n问：Tea?\n\n答：", "Yes", "\n\n问：2 + 2\n\n答：", "4", "\n\n问：+ 1\n\n答：", "5"]
    encoded = builder.encode(plan)
    assert [len(ids) for ids in encoded] == [13, 3, 13, 2, 12, 2]
    flat = plan.flatten(encoded)
    assert flat.ends.tolist() == [0, 23, 65]
    assert flat.source_lengths.tolist() == [19, 39]
    supervised = [*range(19, 23), *range(42, 45), *range(62, 65)]
    assert [place for place, label in enumerate(flat.labels) if label != IGNORED] == supervised
    assert [place for place in supervised if flat.labels[place] == EOS] == [22, 44, 64]
    assert (flat.input_ids[44], flat.input_ids[64]) == (tokenizer.newline, EOS)
