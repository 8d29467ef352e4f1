"""Measure what sharing a context saves: many questions about a context that is read once, against each question alone.

    python -m benchmarks.evaluate                            25 questions about one 16k context, and memory by length
    python -m benchmarks.evaluate --length 4096 --alone 25   fewer tokens, every question really asked alone

Both ways run in one process, with the same number of new tokens and on the same network: the tiny
preset with random weights, because the cost does not depend on their values. The time of asking
alone is measured with `--alone` questions and extrapolated. Peak memory is measured in a new process
for each length.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.machine import print_machine
from glm2core.evaluation.generation import answer_questions, read_context
from glm2core.hardware import peak_memory_gib
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.presets import preset_config

VOCABULARY = 2048
QUESTION_TOKENS, NEW_TOKENS = 20, 24
NEVER: frozenset[int] = frozenset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384, help="number of tokens in the context")
    parser.add_argument("--questions", type=int, default=25)
    parser.add_argument("--alone", type=int, default=3, help="number of questions that are really asked alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", help="the weights' dtype: bfloat16, as in evaluate, or float32")
    parser.add_argument("--memory-of", type=int, help="only print the peak memory for one context of this many tokens")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = ChatGLM2ForCausalLM(preset_config("tiny", VOCABULARY)).to(getattr(torch, arguments.dtype)).eval()
    if arguments.memory_of:
        _ask(model, _tokens(arguments.memory_of), [_tokens(QUESTION_TOKENS)] * arguments.questions)
        print(f"{peak_memory_gib(model.device):.3f}")
        return
    print_machine()
    _compare(model, arguments.length, arguments.questions, arguments.alone)
    _memory(arguments.questions, arguments.threads, arguments.dtype)


def _compare(model: ChatGLM2ForCausalLM, length: int, questions: int, alone: int) -> None:
    context, asked = _tokens(length), [_tokens(QUESTION_TOKENS) for _ in range(questions)]
    _ask(model, context[:512], asked[:2])  # the first call chooses kernels
    shared = _seconds(lambda: _ask(model, context, asked))
    each = statistics.median(_seconds(lambda q=q: _ask(model, context, [q])) for q in asked[:alone])
    print(f"{questions} questions on one context of {length:,} tokens, {NEW_TOKENS} new tokens each, {model.dtype}")
    print(f"  context read once: {shared:8.2f} s")
    print(f"  each asked alone:  {each * questions:8.2f} s ({each:.2f} s a question, median of {alone})")
    print(f"  {each * questions / shared:.1f} times cheaper")


def _memory(questions: int, threads: int, dtype: str) -> None:
    print(f"peak resident memory of the process, {questions} questions")
    for length in (2048, 4096, 8192, 16384, 32768):
        command = [sys.executable, "-m", "benchmarks.evaluate", "--memory-of", str(length)]
        command += ["--questions", str(questions), "--threads", str(threads), "--dtype", dtype]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        print(f"  {length:6,} tokens: {found} GiB", flush=True)


def _ask(model: ChatGLM2ForCausalLM, context: list[int], questions: list[list[int]]) -> None:
    answer_questions(read_context(model, context, len(context)), questions, NEW_TOKENS, NEVER)


def _tokens(count: int) -> list[int]:
    tokens: list[int] = torch.randint(3, VOCABULARY, (count,)).tolist()
    return tokens


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
