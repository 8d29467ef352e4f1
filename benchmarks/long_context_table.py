"""The table, the CSV file and the picture of benchmarks/long_context.py."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from glm2core.evaluation.plots import length_name
from glm2core.evaluation.scores import Answer, score, wilson_interval


def table_rows(answers_by_control: dict[str, list[list[Answer]]]) -> Iterator[dict[str, Any]]:
    """A row a control and length (or LongEval file): all seeds together, and the lowest and highest of them.

    Args:
        answers_by_control: by a control's name, the answers of each seed that has some.
    """
    for name, by_seed in answers_by_control.items():
        answers = [answer for some in by_seed for answer in some]
        for task, length in dict.fromkeys((a.task, a.length) for a in answers):
            groups = [[a for a in some if (a.task, a.length) == (task, length)] for some in by_seed]
            groups = [group for group in groups if group]
            everything = [answer for group in groups for answer in group]
            shares = [score(group).accuracy for group in groups]
            total = score(everything)
            low, high = wilson_interval(total.right, total.cases)
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


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
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
    figure.savefig(path, dpi=110, metadata={"Software": None})
