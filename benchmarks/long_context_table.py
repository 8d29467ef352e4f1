"""Makes the table, the CSV file and the picture of benchmarks/long_context.py."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glm2core.evaluation.plots import length_name
from glm2core.evaluation.scores import Answer, score

_TRAINED_ON = 2048  # tokens
_STORY_TASK = "lines"
# Control -> its label, colour, the labelled point, the label's offset from it, and which end of the label
_STORY = {
    "YaRN 16, tuned": ("scaled by 16 (YaRN), tuned", "tab:blue", -1, (0, 13), "right"),
    "base, YaRN 16, not tuned": ("scaled, not tuned", "tab:orange", -1, (0, -13), "right"),
    "plain, tuned as long": ("plain,\ntuned as long", "tab:red", 3, (-14, -14), "right"),
    "base, plain": ("the base, plain positions", "tab:purple", 3, (9, 4), "left"),
}


def table_rows(answers_by_control: dict[str, list[list[Answer]]]) -> Iterator[dict[str, Any]]:
    """Make one row per control, task and length (or LongEval file), with all seeds together and the range of the seeds.

    Args:
        answers_by_control: each control's name, with the answers of each seed that gave any.
    """
    for name, by_seed in answers_by_control.items():
        answers = [answer for some in by_seed for answer in some]
        for task, length in dict.fromkeys((a.task, a.length) for a in answers):
            groups = [[a for a in some if (a.task, a.length) == (task, length)] for some in by_seed]
            groups = [group for group in groups if group]
            everything = [answer for group in groups for answer in group]
            shares = [score(group).accuracy for group in groups]
            total = score(everything)
            low, high = total.interval
            yield {
                "control": name,
                "task": task,
                "length": length,
                "seeds": len(groups),
                "cases": total.cases,
                "right": total.right,
                "accuracy": total.accuracy,
                "low": low,
                "high": high,
                "lowest_seed": min(shares),
                "highest_seed": max(shares),
                "distinct": score([a for a in everything if not a.colliding]).accuracy,
                "colliding": score([a for a in everything if a.colliding]).accuracy,
                "prompt_tokens": sum(a.prompt_tokens for a in everything) / total.cases,
            }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table of points in per cent, with 95% intervals or, for several seeds, their range."""
    lengths = sorted({row["length"] for row in rows if row["length"]})
    print("| model | " + " | ".join(map(length_name, lengths)) + " |\n" + "|---" * (1 + len(lengths)) + "|")
    generated = [row for row in rows if row["length"]]
    for name, task in dict.fromkeys((row["control"], row["task"]) for row in generated):
        own = {row["length"]: row for row in generated if (row["control"], row["task"]) == (name, task)}
        title = name if task == _STORY_TASK else f"{name}: {task}"
        print(f"| {title} | " + " | ".join(_cell(own.get(length)) for length in lengths) + " |")
    for row in rows:
        if not row["length"]:
            asked = f"{row['cases']} ({row['prompt_tokens']:,.0f} tokens)"
            print(f"{row['control']}, {row['task']}: {row['right']} of {asked}")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    seeds = f"; {100 * row['lowest_seed']:.1f}–{100 * row['highest_seed']:.1f}" if row["seeds"] > 1 else ""
    return f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f}{seeds})"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the four most important controls, each with a label at its line, and the limit of the training range."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in rows if row["control"] in _STORY and row["length"] and row["task"] == _STORY_TASK]
    for name, (label, color, at, place, side) in _STORY.items():
        own = [row for row in shown if row["control"] == name]
        if not own:
            continue
        lengths, right = [row["length"] for row in own], [100 * row["accuracy"] for row in own]
        labelled = min(at, len(own) - 1)  # a run of few lengths has no fourth
        axes.fill_between(
            lengths,
            [100 * row["low"] for row in own],
            [100 * row["high"] for row in own],
            color=color,
            alpha=0.15,
            lw=0,
        )
        axes.plot(lengths, right, marker="o", markersize=4, color=color)
        axes.annotate(
            label,
            (lengths[labelled], right[labelled]),
            xytext=place,
            textcoords="offset points",
            color=color,
            fontsize=9,
            ha=side,
            va="center",
        )
    axes.axvline(_TRAINED_ON, color="grey", linewidth=1, linestyle="--")
    axes.annotate(
        "trained on texts up to here",
        (_TRAINED_ON, 3),
        (-5, 0),
        textcoords="offset points",
        color="grey",
        fontsize=8,
        ha="right",
    )
    ticks = sorted({row["length"] for row in shown})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [length_name(length) for length in ticks])
    axes.set(xlabel="tokens of the text that is asked about", ylabel="numbers found, %", ylim=(-3, 113))
    axes.set_yticks(range(0, 101, 20))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
