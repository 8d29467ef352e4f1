"""ROUGE and BLEU: known values, and no text makes them fail."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glm2core.evaluation.text_metrics import METRICS, ROUGE, row_scores, words
from glm2core.evaluation.text_tables import text_scores


def text_metrics(answers: list[str], references: list[str]) -> dict[str, float]:
    rows = [row_scores(*pair) for pair in zip(answers, references, strict=True)]
    scores = text_scores(polars.DataFrame(rows).with_columns(loss=0.0, tokens=1))
    return {name: scores[name] for name in METRICS}


TEXT = st.text(alphabet="ab。！？?”…. \n\t\u3000\u2028你好世界天气", max_size=20)


def test_chinese_is_cut_into_words() -> None:
    assert words("今天天气很好") == "今天天气 很 好"
    assert words("a  b\n c") == "a b c"


def test_known_values() -> None:
    # ROUGE-1: 2 of 3 words shared both ways; ROUGE-2: 1 of 2; ROUGE-L: 2 of 3
    scores = text_metrics(["the cat sat"], ["the cat ran"])
    assert [scores[name] for name in ROUGE] == pytest.approx([200 / 3, 50, 200 / 3], abs=1e-3)
    assert scores["exact_match"] == 0
    perfect = text_metrics(["英国的首都是伦敦。", "a b c d e"], ["英国的首都是伦敦。", "a b c d e"])
    assert list(perfect.values()) == pytest.approx([100] * 5, abs=1e-3)


def test_an_empty_answer_scores_0_and_halves_the_mean() -> None:
    assert set(text_metrics([""], ["今天"]).values()) == {0.0}
    both = text_metrics(["", "a b c d e"], ["a b c d e", "a b c d e"])
    assert [both[name] for name in ROUGE] == pytest.approx([50] * 3, abs=1e-3)


def test_bleu_is_of_the_corpus_and_no_mean_of_rows() -> None:
    answers = ["a b c d e f", "今天 天气 很 好 啊", "x", ""]
    references = ["a b c d x f g", "今天 天气 很 好", "y z", "a b"]
    pairs = [[words(text) for text in texts] for texts in (answers, references)]
    whole = sacrebleu.corpus_bleu(pairs[0], [pairs[1]], tokenize="none", force=True).score
    assert text_metrics(answers, references)["bleu_4"] == pytest.approx(whole, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
@example("。", "。")
@example("\n", "a")
def test_no_text_stops_the_scores(answer: str, reference: str) -> None:
    scores = text_metrics([answer], [reference])
    assert set(scores) == set(METRICS)
    assert all(0 <= value <= 100.001 for value in scores.values())


@pytest.mark.parametrize("writable", [True, False])
def test_jieba_keeps_its_cache_with_the_user(tmp_path: Path, writable: bool) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    (shared / "jieba.cache").write_bytes(b"from a stranger")
    if writable:
        own.mkdir()
    else:
        own.write_text("a file in the way")
    code = "from glm2core.evaluation.text_metrics import words; print(words('我来到北京清华大学'))"
    environment = {**os.environ, "TMPDIR": str(shared), "XDG_CACHE_HOME": str(own)}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "我 来到 北京 清华大学\n"
    assert [file.read_bytes() for file in shared.iterdir()] == [b"from a stranger"]
    if writable:
        cache = own / "glm2core/jieba.cache"
        assert cache.stat().st_size > 1 << 20 and stat.S_IMODE(cache.parent.stat().st_mode) == 0o700
