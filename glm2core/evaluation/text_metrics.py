"""ROUGE and BLEU of answers against references, in per cent, for Chinese, English and both mixed.

Texts are cut into words by jieba, so that Chinese has words at all; case counts. An empty answer
scores 0 and stops nothing.
"""

import logging
import statistics
from collections.abc import Sequence

import jieba
import sacrebleu
from rouge_chinese import Rouge

METRICS = ("rouge_1", "rouge_2", "rouge_l", "bleu_4")


def text_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L over the pairs, and BLEU-4 of the whole corpus (sacrebleu, exponential smoothing).

    Returns:
        A value from 0 to 100 for each of `METRICS`; no pairs means an empty dict.
    """
    if not answers:
        return {}
    cut_answers, cut_references = [words(text) for text in answers], [words(text) for text in references]
    pairs = [rouge(answer, reference) for answer, reference in zip(cut_answers, cut_references, strict=True)]
    # tokenize="none": the words are cut already; force silences a warning about that.
    bleu = sacrebleu.corpus_bleu(cut_answers, [cut_references], tokenize="none", force=True)
    return {name: statistics.fmean(pair[name] for pair in pairs) for name in METRICS[:3]} | {"bleu_4": bleu.score}


def rouge(answer: str, reference: str) -> dict[str, float]:
    """F1 in per cent of one pair of texts whose words stand between spaces."""
    if not answer or not reference:
        return dict.fromkeys(METRICS[:3], 0.0)
    scores = Rouge().get_scores(answer, reference)[0]
    return {name: 100 * scores[name.replace("_", "-")]["f"] for name in METRICS[:3]}


def words(text: str) -> str:
    """The text's words with a space between each; white space is no word."""
    jieba.setLogLevel(logging.WARNING)
    return " ".join(word for word in jieba.cut(text) if not word.isspace())
