"""The long-context claim with its controls: the same questions to the base, plain and scaled, and to tuned models.

    make longcontext                                        what is missing, then docs/long-context.csv and .png
    python -m benchmarks.long_context --jobs 4              that, four models at a time, a thread each
    python -m benchmarks.long_context --longeval FOLDER     LongEval's own *_lines.jsonl files besides
    python -m benchmarks.long_context --table               only the table of what is there

Every tuned model takes params.yaml's train section as it is: the same data, steps and position gaps' code; only
`model.rope` and the seed differ. Models and answers are kept in .longcontext/, so an interrupted run goes on; each
is made anew when params.yaml or the base has changed.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from glm2core.console import quiet_libraries
from glm2core.data.sp import SpTokenizer
from glm2core.evaluation.plots import length_name
from glm2core.evaluation.report import append_records
from glm2core.evaluation.retrieval import PromptFormat
from glm2core.evaluation.run import ask
from glm2core.evaluation.scores import Answer, score, wilson_interval
from glm2core.evaluation.tasks import read_longeval
from glm2core.files import sha256_file
from glm2core.model.adapters import load_tuned
from glm2core.model.checkpoint import load_model
from glm2core.model.hardware import set_threads
from glm2core.model.rope import RotaryEmbedding
from glm2core.params import Params, RopeParams, load_params
from glm2core.training.session import open_session

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".longcontext"
TOKENIZED = Path("data/tokenized")
CSV, PICTURE = ROOT / "docs" / "long-context.csv", ROOT / "docs" / "long-context.png"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
FAR = (*LENGTHS, 32768)
CONTEXTS, QUESTIONS = 8, 25


@dataclass(frozen=True)
class Control:
    """A model to ask.

    Args:
        seeds: of its tuning; None = the base, not tuned.
        tables: precision in which the rotary tables are built.
        of: take the tuned model of this control instead of tuning one.
        longeval: LongEval's own files are asked too, with the first seed.
    """

    name: str
    rope: Literal["default", "linear", "ntk", "yarn"] = "default"
    factor: float = 1.0
    seeds: tuple[int | None, ...] = (None,)
    lengths: tuple[int, ...] = LENGTHS
    contexts: int = CONTEXTS
    tables: torch.dtype = torch.float32
    of: str | None = None
    longeval: bool = False


LINEAR = "linear 16, tuned"
CONTROLS = (
    Control("base, plain"),
    Control("base, linear 16, not tuned", "linear", 16),
    Control("base, NTK 16, not tuned", "ntk", 16),
    Control("base, YaRN 16, not tuned", "yarn", 16),
    Control(LINEAR, "linear", 16, seeds=(0, 1, 2), lengths=FAR, longeval=True),
    Control("plain, tuned as long", seeds=(0, 1, 2)),
    Control("YaRN 16, tuned", "yarn", 16, seeds=(0,)),
    Control("linear 32, tuned", "linear", 32, seeds=(0,), lengths=(*FAR, 65536), contexts=4),
    *(
        Control(f"{LINEAR}, {name} tables", "linear", 16, seeds=(0,), tables=dtype, of=LINEAR, lengths=FAR, contexts=4)
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16))
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time, a thread each")
    parser.add_argument("--longeval", type=Path, help="folder of LongEval's *_lines.jsonl files")
    parser.add_argument("--only", action="append", help="only this control (may be repeated)")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--one", nargs=2, metavar=("CONTROL", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = sorted(arguments.longeval.glob("*_lines.jsonl")) if arguments.longeval else []
    if arguments.one:
        name, seed = arguments.one
        _answer(_control(name), None if seed == "None" else int(seed), files)
        return
    chosen = [control for control in CONTROLS if not arguments.only or control.name in arguments.only]
    if not arguments.table:
        subprocess.run(["dvc", "repro", "tokenize"], cwd=ROOT, check=True)
        first = [(c, seed) for c in chosen for seed in c.seeds if c.of is None]
        then = [(c, seed) for c in chosen for seed in c.seeds if c.of is not None]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for some in (first, then):  # a list at a time: the second takes models of the first
                list(pool.map(lambda pair: _in_a_process(*pair, arguments.longeval), some))
    rows = list(_rows(chosen))
    _print_table(rows)
    if not arguments.table and not arguments.only:
        _write_csv(rows)
        _plot(rows)


def _in_a_process(control: Control, seed: int | None, longeval: Path | None) -> None:
    """A process of its own, so that one model's memory is given back before the next."""
    command = [sys.executable, "-m", "benchmarks.long_context", "--one", control.name, str(seed)]
    command += ["--longeval", str(longeval)] if longeval else []
    folder = _folder(control, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("wb") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{control.name}, seed {seed}: failed, see {folder / 'log.txt'}")
    print(f"{control.name}, seed {seed}: {_summary(_read(control, seed))}", flush=True)


def _answer(control: Control, seed: int | None, files: list[Path]) -> None:
    """Tune where that is asked for, ask all questions, and keep the answers; what is there already is left."""
    folder, key = _folder(control, seed), _key(control, seed, files)
    if (folder / "key").is_file() and (folder / "key").read_text() == key:
        return
    (folder / "key").unlink(missing_ok=True)  # answers that are being written must not look whole
    quiet_libraries()
    set_threads(1)
    params = load_params(ROOT / "params.yaml")
    model = _model(control, seed, params)
    if control.tables != torch.float32:
        model.transformer.rotary_pos_emb = HalfTables(model.config, control.tables)
    changes = {"lengths": list(control.lengths), "contexts": control.contexts, "questions": QUESTIONS}
    settings = params.evaluate.retrieval.model_copy(update={"tasks": ["lines"], **changes})
    cases = [case for file in files if control.longeval and seed == control.seeds[0] for case in read_longeval(file)]
    tokenizer = SpTokenizer.load(ROOT / str(params.model.base))
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        answers = ask(model, PromptFormat(tokenizer, "chatglm2"), params.evaluate, settings, cases, file)
    append_records(sys.stdout, [{"answers": len(answers)}])
    (folder / "key").write_text(key)


def _model(control: Control, seed: int | None, params: Params) -> Any:
    base, dtype = ROOT / str(params.model.base), torch.bfloat16
    if seed is None:
        return load_model(base, dtype=dtype, rope_type=control.rope, rope_factor=control.factor)
    folder = _folder(_control(control.of or control.name), seed) / "model"
    if control.of is None:
        rope = RopeParams(type=control.rope, factor=control.factor, unit=params.model.rope.unit)
        changed = params.model_copy(
            update={
                "model": params.model.model_copy(update={"rope": rope}),
                "train": params.train.model_copy(update={"seed": seed, "threads": 1}),
            }
        )
        with open_session(changed, TOKENIZED) as session:
            session.run(lambda metrics, step: None).train()
            session.write_model(folder)
            session.finish()
    return load_tuned(folder, dtype=dtype)


class HalfTables(RotaryEmbedding):
    """Angles as the released code builds them: positions, frequencies and their product in half precision."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__(config)
        self._dtype = dtype

    @torch.no_grad()
    def angles(self, position_ids: Tensor) -> Tensor:
        frequencies = torch.tensor(self._frequencies[0], dtype=self._dtype)
        return (position_ids[..., None].to(self._dtype) * frequencies).float()


def _key(control: Control, seed: int | None, files: Sequence[Path]) -> str:
    """What the answers depend on: the control, params.yaml and the base."""
    parts = [repr(control), str(seed), sha256_file(ROOT / "params.yaml")]
    parts += [sha256_file(file) for file in sorted((ROOT / "models" / "base").glob("*.safetensors"))]
    parts += [sha256_file(file) for file in files if control.longeval]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _control(name: str) -> Control:
    return next(control for control in CONTROLS if control.name == name)


def _folder(control: Control, seed: int | None) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in control.name.lower())
    return WORK / (slug if seed is None else f"{slug}-{seed}")


def _read(control: Control, seed: int | None) -> list[Answer]:
    names = {field.name for field in fields(Answer)}
    file = _folder(control, seed) / "answers.jsonl"
    if not (_folder(control, seed) / "key").is_file():
        return []
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Answer(**{name: value for name, value in record.items() if name in names}) for record in records]


def _rows(controls: Sequence[Control]) -> Iterator[dict[str, Any]]:
    """A row a control and length (or LongEval file): all seeds together, and the lowest and highest of them."""
    for control in controls:
        by_seed = {seed: answers for seed in control.seeds if (answers := _read(control, seed))}
        answers = [answer for some in by_seed.values() for answer in some]
        for task, length in dict.fromkeys((a.task, a.length) for a in answers):
            groups = [[a for a in some if (a.task, a.length) == (task, length)] for some in by_seed.values()]
            everything = [answer for group in groups for answer in group]
            shares = [score(group).accuracy for group in groups]
            total = score(everything)
            low, high = wilson_interval(total.right, total.cases)
            yield {
                "control": control.name, "task": task, "length": length, "seeds": len(groups), "cases": total.cases,
                "right": total.right, "accuracy": total.accuracy, "low": low, "high": high,
                "lowest_seed": min(shares), "highest_seed": max(shares),
                "distinct": score([a for a in everything if not a.colliding]).accuracy,
                "colliding": score([a for a in everything if a.colliding]).accuracy,
                "prompt_tokens": sum(a.prompt_tokens for a in everything) / total.cases,
            }  # fmt: skip


def _summary(answers: list[Answer]) -> str:
    places = dict.fromkeys((a.task, a.length) for a in answers)
    shares = {place: score([a for a in answers if (a.task, a.length) == place]).accuracy for place in places}
    return ", ".join(f"{length_name(length) if length else task} {shares[task, length]:.1%}" for task, length in places)


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown: per cent right with the 95% interval; with several seeds their range."""
    lengths = sorted({row["length"] for row in rows if row["length"]})
    print("| model | " + " | ".join(map(length_name, lengths)) + " |\n" + "|---" * (1 + len(lengths)) + "|")
    for name in dict.fromkeys(row["control"] for row in rows):
        own = {row["length"]: row for row in rows if row["control"] == name and row["length"]}
        print(f"| {name} | " + " | ".join(_cell(own.get(length)) for length in lengths) + " |")
    for row in rows:
        if not row["length"]:
            asked = f"{row['cases']} ({row['prompt_tokens']:,.0f} tokens)"
            print(f"{row['control']}, {row['task']}: {row['right']} of {asked}")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    seeds = f"; {100 * row['lowest_seed']:.1f}–{100 * row['highest_seed']:.1f}" if row["seeds"] > 1 else ""
    return f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f}{seeds})"


def _write_csv(rows: list[dict[str, Any]]) -> None:
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _plot(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["control"] for row in rows):
        own = [row for row in rows if row["control"] == name and row["length"]]
        style = "--" if "not tuned" in name or name.startswith("base") else ":" if "tables" in name else "-"
        points = [row["accuracy"] for row in own]
        errors = [[row["accuracy"] - row["low"] for row in own], [row["high"] - row["accuracy"] for row in own]]
        places = [row["length"] for row in own]
        axes.errorbar(places, points, yerr=errors, marker="o", markersize=3, capsize=2, linestyle=style, label=name)
    lengths = sorted({row["length"] for row in rows if row["length"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [length_name(length) for length in lengths])
    axes.set(xlabel="tokens of the prompt", ylabel="exact match", ylim=(-0.03, 1.05))
    axes.set_title("Lines retrieval; 95% intervals, seeds together", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
