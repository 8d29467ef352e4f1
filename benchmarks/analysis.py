"""Exact match of base and tuned model in generated text analysis with held-out entities, by kind and language.

    python -m benchmarks.analysis                        models/tuned and the base of params.yaml, 50 rows of each
    python -m benchmarks.analysis FOLDER --base none     another model, without its base
    python -m benchmarks.analysis --rows 100             more rows of each kind and language

The rows are drawn from the held-out entities with a separate seed. A model answers each row's last question greedily.
The intervals are Wilson's 95% intervals.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import print_machine
from glm2core.analysis.entities import LANGUAGES, Language
from glm2core.analysis.rows import KINDS, AnalysisRow, Kind, make_row
from glm2core.console import progress_bar, quiet_libraries
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.evaluation.scores import wilson_interval
from glm2core.files import resolve_path
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.params import load_params
from glm2core.text.chat_format import ChatFormat

ROOT = Path(__file__).resolve().parent.parent
SEED = 20_260
LEAST_ROWS = 50
Group = tuple[Kind, Language]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "models/tuned", help="folder (models/tuned)")
    parser.add_argument("--base", help="the base's folder; none = no base is asked (model.base in params.yaml)")
    parser.add_argument("--rows", type=int, default=LEAST_ROWS, help="rows of each kind and language, at least 50")
    parser.add_argument("--batch-size", type=int, default=25)
    arguments = parser.parse_args()
    quiet_libraries()
    print_machine()
    base = arguments.base or load_params(ROOT / "params.yaml").model.base or "none"
    models = {**({} if base == "none" else {"base": resolve_path(base)}), "tuned": arguments.model}
    asked = {
        (kind, language): [row_of(kind, language, number) for number in range(max(LEAST_ROWS, arguments.rows))]
        for kind in KINDS
        for language in LANGUAGES
    }
    right = {name: right_answers(name, folder, asked, arguments.batch_size) for name, folder in models.items()}
    print(f"exact match in per cent, {' -> '.join(models)}")
    for group, rows in asked.items():
        print_line(" ".join(group), [right[name][group] for name in models], len(rows))
    for language in LANGUAGES:
        counts = [sum(right[name][kind, language] for kind in KINDS) for name in models]
        print_line(f"all {language}", counts, sum(len(asked[kind, language]) for kind in KINDS))
    print_line("all", [sum(right[name].values()) for name in models], sum(map(len, asked.values())))


def row_of(kind: Kind, language: Language, number: int) -> AnalysisRow:
    return make_row(random.Random(f"benchmark {SEED} {kind} {language} {number}"), kind, language, "held out")


def right_answers(name: str, folder: Path, asked: dict[Group, list[AnalysisRow]], batch_size: int) -> dict[Group, int]:
    """Count the rows of each group that a model answers exactly, and print the time."""
    chat_format = ChatFormat.load(folder)
    device = choose_device("auto")
    dtype = choose_dtype("auto", device, parameters=network_parameters(folder))
    network = load_tuned(folder, dtype=dtype, device=device, notice=lambda sentence: None).eval()
    longest = max(len(ids) for ids in map(chat_format.tokenizer.encode, answers_of(asked)))
    answerer = Answerer(network, chat_format, Sampling(longest + 8))
    started = time.perf_counter()
    right = dict.fromkeys(asked, 0)
    with progress_bar(name, sum(map(len, asked.values()))) as (bar, task), torch.inference_mode():
        for group, rows in asked.items():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                replies = answerer.answer([row.conversation.messages[:-1] for row in batch])
                expected = answers_of({group: batch})
                right[group] += sum(
                    reply.answer.strip() == answer.strip() for reply, answer in zip(replies, expected, strict=True)
                )
                bar.advance(task, len(batch))
    print(f"{name}: {folder}, {str(dtype).removeprefix('torch.')}, {time.perf_counter() - started:.0f} s", flush=True)
    return right


def answers_of(asked: dict[Group, list[AnalysisRow]]) -> list[str]:
    return [row.conversation.messages[-1]["content"] for rows in asked.values() for row in rows]


def print_line(name: str, counts: Sequence[int], rows: int) -> None:
    cells = []
    for count in counts:
        low, high = wilson_interval(count, rows)
        cells.append(f"{100 * count / rows:5.1f} ({100 * low:.0f}-{100 * high:.0f})")
    print(f"  {name:<14}{rows:>5} rows  {' -> '.join(cells)}")


if __name__ == "__main__":
    main()
