"""ROUGE and BLEU: known values, and no text that stops them."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glm2core.evaluation.text_metrics import METRICS, text_metrics, words

TEXT = st.text(alphabet="ab。！？?”…. \n\t\u3000\u2028你好世界天气", max_size=20)


def test_chinese_is_cut_into_words() -> None:
    assert words("今天天气很好") == "今天天气 很 好"
    assert words("a  b\n c") == "a b c"


def test_known_values() -> None:
    # ROUGE-1: 2 of 3 words shared both ways; ROUGE-2: 1 of 2; ROUGE-L: 2 of 3
    scores = text_metrics(["the cat sat"], ["the cat ran"])
    assert [scores[name] for name in METRICS[:3]] == pytest.approx([200 / 3, 50, 200 / 3], abs=1e-3)
    perfect = text_metrics(["英国的首都是伦敦。", "a b c d e"], ["英国的首都是伦敦。", "a b c d e"])
    assert list(perfect.values()) == pytest.approx([100] * 4, abs=1e-3)


def test_an_empty_answer_scores_0_and_halves_the_mean() -> None:
    assert set(text_metrics([""], ["今天"]).values()) == {0.0}
    both = text_metrics(["", "a b c d e"], ["a b c d e", "a b c d e"])
    assert [both[name] for name in METRICS[:3]] == pytest.approx([50] * 3, abs=1e-3)
    assert text_metrics([], []) == {}


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
@example("。", "。")
@example("\n", "a")
def test_no_text_stops_the_scores(answer: str, reference: str) -> None:
    scores = text_metrics([answer], [reference])
    assert set(scores) == set(METRICS)
    assert all(0 <= value <= 100.001 for value in scores.values())
