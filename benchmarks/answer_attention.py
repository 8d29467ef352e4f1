"""Show what attention heads look at while a model writes the number of a line, in right and in wrong answers.

    python -m benchmarks.answer_attention                                   models/tuned, 16,384 tokens
    python -m benchmarks.answer_attention FOLDER --length 32768 --contexts 8

The model answers questions of the task `lines`. In each answer with the right key, every digit up to the first wrong
one is a step. A head reads the digit of a step if it attends to the digit at the same place in the line that was
asked for. The table shows, for the heads that read most, how much of their attention goes there, and how much goes to
the digit that the model wrote instead, in other lines. The picture shows the attention of one wrong step by line.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.machine import print_machine
from glm2core.console import quiet_libraries
from glm2core.evaluation.cases import Case
from glm2core.evaluation.generation import Context, answer_questions, read_context
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.hardware import choose_device, choose_dtype
from glm2core.lines.records import Line, parse_record
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.text.chat_format import ChatFormat

ROOT = Path(__file__).resolve().parent.parent
SEED = 4321
QUESTIONS, DEPTHS = 50, 5
HEADS = 6
PREFILL_CHUNK = 32_768
NEW_TOKENS = 64


@dataclass(frozen=True)
class RecordLine:
    """A line of a record, with the places of its tokens and of its number's digits in the context."""

    line: Line
    first: int
    last: int
    digits: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One digit of an answer.

    Args:
        right: whether the model wrote the digit that the asked line has.
        wanted: the share of each head's attention on that digit in the asked line, [layers, heads].
        given: the share on the written digit in all other lines.
        by_line: the share on each line of the record, [layers, heads, lines].
        asked: index of the asked line.
    """

    right: bool
    wanted: Tensor
    given: Tensor
    by_line: Tensor
    asked: int
    key: str
    wrote: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "models/tuned", help="folder (models/tuned)")
    parser.add_argument("--length", type=int, default=16_384, help="tokens of a context (16384)")
    parser.add_argument("--contexts", type=int, default=4, help="contexts, with 50 questions each (4)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/answer_attention.png", help="the picture")
    arguments = parser.parse_args()
    quiet_libraries()
    print_machine()
    device = choose_device("auto")
    dtype = choose_dtype("auto", device, parameters=network_parameters(arguments.model))
    tuned = load_tuned(arguments.model, dtype=dtype, device=device, notice=lambda sentence: None)
    model = cast(PreTrainedModel, tuned).eval()
    chat_format = ChatFormat.load(arguments.model)
    generated = GeneratedCases(["lines"], [arguments.length], arguments.contexts, QUESTIONS, DEPTHS, SEED)
    steps = [step for case in generated.cases(chat_format.count_tokens) for step in steps_of(model, chat_format, case)]
    if not any(step.right for step in steps):
        print("no digit is right, so no head reads one")
        return
    print_heads(steps)
    wrong = [step for step in steps if not step.right]
    if wrong:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        draw(wrong[0], readers(steps)[:3], arguments.out)
        print(f"attention of the first wrong digit: {arguments.out}")


def steps_of(model: PreTrainedModel, chat_format: ChatFormat, case: Case) -> Iterator[Step]:
    """Answer a case's questions, and yield the steps of the answers that repeat the right key."""
    prompt, questions = chat_format.encode_questions(case.context, [question.text for question in case.questions])
    lines = record_lines(chat_format, prompt, parse_record(case.context))
    context = read_context(model, prompt, PREFILL_CHUNK)
    read = context.cache.get_seq_length()
    answers = answer_questions(context, questions, NEW_TOKENS, chat_format.stop_ids)
    for asked, ids, answer in zip(case.questions, questions, answers, strict=True):
        if (added := context.cache.get_seq_length() - read) > 0:
            context.cache.crop(-added)
        number = next(i for i, line in enumerate(lines) if f" {line.line.key}?" in asked.text)
        start = number_start(chat_format, answer, lines[number].line)
        if start is not None:
            yield from _steps(context, chat_format, ids, answer, start, lines, number)


def record_lines(chat_format: ChatFormat, ids: list[int], lines: list[Line]) -> list[RecordLine]:
    """Find the tokens of a record's lines; each line ends with its number and `>`."""
    found, start, left = [], 0, iter(lines)
    ends = [place for place, token in enumerate(ids) if token == chat_format.newline]
    for end in ends:
        pieces = [chat_format.tokenizer.piece(token) for token in ids[start:end]]
        if chat_format.tokenizer.decode(ids[start:end]).strip().startswith("line ") and pieces[-1] == ">":
            count = sum(1 for _ in itertools.takewhile(str.isdigit, reversed(pieces[:-1])))
            found.append(RecordLine(next(left), start, end, tuple(range(end - 1 - count, end - 1))))
        start = end + 1
    return found


def number_start(chat_format: ChatFormat, answer: list[int], line: Line) -> int | None:
    """The index of the first digit in an answer that repeats a line's key; None if the key or the wording is wrong."""
    begun = chat_format.tokenizer.encode(line.text.removesuffix(f"{line.value}>"))
    return len(begun) if answer[: len(begun)] == begun and len(answer) > len(begun) else None


def _steps(
    context: Context,
    chat_format: ChatFormat,
    question: list[int],
    answer: list[int],
    start: int,
    lines: list[RecordLine],
    asked: int,
) -> Iterator[Step]:
    piece = chat_format.tokenizer.piece
    expected = str(lines[asked].line.value)
    wrote = [piece(token) for token in answer[start : start + len(expected)]]
    right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(wrote, expected, strict=False)))
    steps = min(right + 1, len(expected), len(wrote))
    weights = _weights(context, question + answer[: start + steps - 1], steps)  # [steps, layers, heads, K]
    others = [line for number, line in enumerate(lines) if number != asked]
    for digit, each in enumerate(weights):
        same = [
            place
            for line in others
            for place, character in zip(line.digits, str(line.line.value), strict=True)
            if character == wrote[digit]
        ]
        yield Step(
            right=digit < right,
            wanted=each[..., lines[asked].digits[digit]],
            given=each[..., same].sum(-1),
            by_line=torch.stack([each[..., line.first : line.last].sum(-1) for line in lines], dim=-1),
            asked=asked,
            key=lines[asked].line.key,
            wrote=f"{expected[:digit]}[{wrote[digit]}] instead of {expected}",
        )


@torch.inference_mode()
def _weights(context: Context, ids: list[int], last: int) -> Tensor:
    """The attention weights of the last tokens, [last, layers, heads, K]."""
    model, first = context.network, context.next_position
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that returns its weights
    try:
        outputs = model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.arange(first, first + len(ids), device=model.device)[None],
            past_key_values=context.cache,
            use_cache=True,
            output_attentions=True,
        )
    finally:
        model.set_attn_implementation(implementation)
    stacked = torch.stack([layer[0, :, -last:] for layer in outputs.attentions])  # [layers, heads, last, K]
    return stacked.permute(2, 0, 1, 3).float()


def readers(steps: list[Step]) -> list[tuple[int, int]]:
    """Layer and head of the heads with most attention on the wanted digit in right steps."""
    mean = torch.stack([step.wanted for step in steps if step.right]).mean(0)
    order = mean.flatten().argsort(descending=True)
    return [(int(place) // mean.shape[1], int(place) % mean.shape[1]) for place in order]


def print_heads(steps: list[Step]) -> None:
    groups = {"right": [step for step in steps if step.right], "wrong": [step for step in steps if not step.right]}
    print("digits: " + ", ".join(f"{len(some):,} {name}" for name, some in groups.items()))
    print("attention in %: on the wanted digit / on the written digit in other lines")
    for layer, head in readers(steps)[:HEADS]:
        cells = [
            f"{name} {_percent(some, 'wanted', layer, head)} / {_percent(some, 'given', layer, head)}"
            for name, some in groups.items()
            if some
        ]
        print(f"  layer {layer} head {head}: {'; '.join(cells)}")
    for step in groups["wrong"]:
        print(f"  {step.key}: {step.wrote}")


def _percent(steps: list[Step], name: str, layer: int, head: int) -> str:
    return f"{100 * torch.stack([getattr(step, name)[layer, head] for step in steps]).mean():.0f}"


def draw(step: Step, heads: list[tuple[int, int]], path: Path) -> None:
    """Draw the attention of one step on each line of the record, one panel for each head."""
    figure = Figure(figsize=(8, 1.6 * len(heads) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heads), sharex=True, squeeze=False)[:, 0]
    for axes, (layer, head) in zip(panels, heads, strict=True):
        shares = 100 * step.by_line[layer, head]
        axes.vlines(range(len(shares)), 0, shares.tolist(), linewidth=1)
        axes.vlines([step.asked], 0, float(shares[step.asked]), linewidth=2, color="tab:orange", label="asked line")
        axes.set_ylabel(f"layer {layer}\nhead {head}, %", fontsize=8)
    panels[0].legend(fontsize=8)
    panels[-1].set_xlabel("line of the record")
    figure.suptitle(f"{step.key}: {step.wrote}", fontsize=10)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
