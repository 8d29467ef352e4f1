"""Analyse the wrong answers of benchmarks/long_context.py, and the pairs of pieces in its keys.

    python -m benchmarks.long_context_errors                      after `make longcontext`
    python -m benchmarks.long_context_errors --longeval FOLDER    also LongEval's own *_lines.jsonl files

An answer repeats its line, so a wrong answer shows whether the key is wrong or the number that follows the right key.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.long_context import CONTROLS, ROOT, YARN, generated_questions, read_answers, settled_params
from benchmarks.machine import print_machine
from glm2core.evaluation.case_files import read_cases
from glm2core.evaluation.cases import Case
from glm2core.evaluation.scores import Answer
from glm2core.lines.records import parse_record
from glm2core.lines.words import Pool, pool
from glm2core.text.chat_format import ChatFormat
from glm2core.text.prompt import Part
from glm2core.text.tokenizer import SpTokenizer

KEYS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longeval", type=Path, help="the folder with LongEval's *_lines.jsonl files")
    parser.add_argument("--show", action="store_true", help="also print every wrong answer")
    arguments = parser.parse_args()
    print_machine()
    params = settled_params()
    tokenizer = SpTokenizer.load(ROOT / str(params.model.base))
    files = sorted(arguments.longeval.glob("*_lines.jsonl")) if arguments.longeval else []
    from_files = [case for file in files for case in read_cases(file)]
    (control,) = (control for control in CONTROLS if control.name == YARN)
    generated = generated_questions(control, params)["lines"].cases(ChatFormat(tokenizer, "chatglm2").count_tokens)
    cases = {(case.task, case.length, case.index): case for case in (*generated, *from_files)}
    wrong: Counter[tuple[str, str]] = Counter()
    for seed in control.seeds:
        for case, answer, key in _wrong(read_answers(control, seed), cases):
            what = _what_went_wrong(case, answer, key)
            wrong[f"{case.task} {case.length or ''}".strip(), what] += 1
            if arguments.show:
                print(f"seed {seed}, {case.task} {case.length}: {key}: {answer.expected}; {what}: {answer.output!r}")
    for (place, what), count in wrong.items():
        print(f"{place}: {count} wrong: {what}")
    if from_files:
        _print_pairs(tokenizer, {line.key for case in from_files for line in parse_record(case.context)})


def _wrong(answers: list[Answer], cases: dict[tuple[str, int, int], Case]) -> Iterator[tuple[Case, Answer, str]]:
    """Return wrong answers with their cases and the asked keys. A case's answers are in the order of its questions."""
    seen: dict[tuple[str, int, int], int] = defaultdict(int)
    for answer in answers:
        place = (answer.task, answer.length, answer.context)
        if place not in cases:  # of another task, or of a LongEval file that was not named
            continue
        question = cases[place].questions[seen[place]]
        seen[place] += 1
        if not answer.correct:
            keys = [line.key for line in parse_record(cases[place].context) if f" {line.key}?" in question.text]
            yield cases[place], answer, keys[0]


def _what_went_wrong(case: Case, answer: Answer, key: str) -> str:
    whose = {line.value: line.key for line in parse_record(case.context)}
    place = "the number" if answer.output.startswith(f"line {key}:") else "the key"
    return f"{place}; {'another line' if answer.predicted in whose else 'no line'} has the number given"


def _print_pairs(tokenizer: SpTokenizer, asked: Iterable[str]) -> None:
    """Count the pairs of neighbouring pieces in `asked` that also occur in keys made of each split's words."""
    pairs = [pair for key in asked for pair in pairwise(tokenizer.part_ids(Part(f" {key}")))]
    for name, words in (("half loose", pool("training")), ("of syllables", pool("evaluation"))):
        known = {pair for key in _keys(words) for pair in pairwise(tokenizer.part_ids(Part(f" {key}")))}
        print(f"pairs of pieces that {KEYS:,} keys {name} have, too: {sum(p in known for p in pairs) / len(pairs):.0%}")


def _keys(words: Pool) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(KEYS):
        yield f"{rng.choice(words.adjectives)}-{rng.choice(words.nouns)}"


if __name__ == "__main__":
    main()
