"""Computes ROUGE and BLEU of answers against references, in per cent, for Chinese, English and mixed texts.

jieba splits texts into words, because Chinese has no spaces between words. Words that differ only in case
count as different words. An empty answer scores 0 and raises no error.
"""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jieba
import sacrebleu
from platformdirs import user_cache_path
from rouge_chinese import Rouge
from sacrebleu.metrics import BLEU

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
METRICS = ("exact_match", *ROUGE, "bleu_4")
BLEU_COUNTS = (
    *(f"matches_{n}" for n in (1, 2, 3, 4)),
    *(f"ngrams_{n}" for n in (1, 2, 3, 4)),
    "answer_words",
    "reference_words",
)
"""Counts for one pair of texts, to be summed over pairs: matching n-grams, the answer's n-grams, words of each text."""


def row_scores(answer: str, reference: str) -> dict[str, float]:
    """Scores of one answer: exact match (0 or 100), ROUGE-1, ROUGE-2 and ROUGE-L (F1 in per cent), and BLEU's counts.

    White space around the answer and the reference is ignored.
    """
    exact = {"exact_match": 100.0 * (answer.strip() == reference.strip())}
    cut_answer, cut_reference = words(answer), words(reference)
    # tokenize="none", because the text is already split into words; force silences a warning about that.
    bleu = sacrebleu.corpus_bleu([cut_answer], [[cut_reference]], tokenize="none", force=True)
    counts = (*bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len)
    return exact | rouge(cut_answer, cut_reference) | dict(zip(BLEU_COUNTS, counts, strict=True))


def corpus_bleu(counts: Sequence[int]) -> float:
    """BLEU-4 from 0 to 100 (sacrebleu, exponential smoothing), for pairs whose `BLEU_COUNTS` add up to `counts`."""
    matches, ngrams, (answer_words, reference_words) = list(counts[:4]), list(counts[4:8]), counts[8:]
    bleu = BLEU.compute_bleu(matches, ngrams, answer_words, reference_words, smooth_method="exp")
    return float(bleu.score)


def rouge(answer: str, reference: str) -> dict[str, float]:
    """ROUGE scores (F1 in per cent) for one pair of texts, whose words must be separated by spaces."""
    if not answer or not reference:
        return dict.fromkeys(ROUGE, 0.0)
    scores = Rouge().get_scores(answer, reference)[0]
    return {name: 100 * scores[name.replace("_", "-")]["f"] for name in ROUGE}


def words(text: str) -> str:
    """The words of a text, separated by spaces; white space does not count as a word."""
    return " ".join(word for word in _cutter().cut(text) if not word.isspace())


@cache
def _cutter() -> jieba.Tokenizer:
    """jieba with its cache in the user's own folder. A cache in the shared folder could come from a different user."""
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    with TemporaryDirectory() as private:
        cutter.tmp_dir = str(_own_folder() or private)
        cutter.initialize()
    return cutter


def _own_folder() -> Path | None:
    try:
        folder = user_cache_path("glm2core", ensure_exists=True)
        folder.chmod(0o700)
    except OSError:  # a home folder that can't be written, or belongs to another user
        return None
    return folder
