"""Plots of an evaluation's results. The same results give the same bytes.

The plots are built without pyplot, which keeps figures in global state and needs a display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

_DPI = 120
_COLORS = "RdYlGn"
_DRAWN_SCORES = {"exact_match": "exact match", "rouge_l": "ROUGE-L"}

TableRow = Mapping[str, Any]


def plot_accuracy_by_length(rows: Sequence[TableRow], path: Path) -> None:
    """Plot accuracy by length, with 95% intervals and the chance level; each model and task is one line.

    Args:
        rows: the rows of `retrieval_tables.by_length`.
    """
    figure, axes = _figure(6.4, 3.8)
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
        points = [row for row in rows if (row["model"], row["task"]) == (model, task)]
        lengths = [row["length"] for row in points]
        shares = [row["accuracy"] for row in points]
        bars = [
            [share - row["low"] for share, row in zip(shares, points, strict=True)],
            [row["high"] - share for share, row in zip(shares, points, strict=True)],
        ]
        line = axes.errorbar(lengths, shares, yerr=bars, marker="o", markersize=4, capsize=3, label=f"{task}, {model}")
        color = line.lines[0].get_color()
        axes.plot(lengths, [row["chance"] for row in points], linestyle=":", linewidth=1, color=color)
    _length_axis(axes, [row["length"] for row in rows])
    axes.set(xlabel="tokens of the prompt", ylabel="exact match", ylim=(-0.03, 1.05))
    axes.set_title("Retrieval by length (95% interval; dotted: chance)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_grid(rows: Sequence[TableRow], path: Path) -> None:
    """Plot a heat map of length and depth that shows the share of right answers in each cell.

    Args:
        rows: the rows of `retrieval_tables.grid` for one task.
    """
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    cells = {(row["depth"], row["length"]): row["accuracy"] for row in rows}
    values = [[cells.get((depth, length), float("nan")) for length in lengths] for depth in depths]
    figure, axes = _figure(1.6 + 0.8 * len(lengths), 1.4 + 0.45 * len(depths))
    axes.imshow(values, cmap=_COLORS, vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(lengths)), [length_name(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="tokens of the prompt", ylabel="depth of the asked line")
    axes.set_title(f"{rows[0]['task']}: {rows[0]['cases']} questions a cell", fontsize=10)
    _save(figure, path)


def plot_loss_by_position(rows: Sequence[TableRow], path: Path) -> None:
    """Plot the perplexity of held-out answers by position in one long sequence, and in the answers' own rows.

    Args:
        rows: table rows with the keys end, perplexity and perplexity_alone.
    """
    figure, axes = _figure(6.4, 3.4)
    ends = [row["end"] for row in rows]
    axes.plot(ends, [row["perplexity"] for row in rows], marker="o", markersize=4, label="in the long sequence")
    axes.plot(ends, [row["perplexity_alone"] for row in rows], linestyle=":", label="in their own rows")
    _length_axis(axes, ends)
    axes.set(xlabel="position up to", ylabel="perplexity", yscale="log")
    axes.set_title("Held-out answers, rows put end to end", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_before_after(rows: Sequence[TableRow], path: Path) -> None:
    """Plot exact match and ROUGE-L for each source, with 95% intervals; the base's bar is above the tuned model's bar.

    Args:
        rows: the rows of `text_tables.by_source`.
    """
    sources = list(dict.fromkeys(row["source"] for row in rows))
    models = sorted({row["model"] for row in rows})
    figure = Figure(figsize=(9.0, 1.2 + 0.24 * len(models) * len(sources) + 0.12 * len(sources)), layout="constrained")
    FigureCanvasAgg(figure)
    height = 0.8 / len(models)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, label) in zip(panels, _DRAWN_SCORES.items(), strict=True):
        for number, model in enumerate(models):
            of_model = [row for row in rows if row["model"] == model]
            places = [sources.index(row["source"]) + (number - (len(models) - 1) / 2) * height for row in of_model]
            values = [row[name] for row in of_model]
            bounds = [(row[f"{name}_low"], row[f"{name}_high"]) for row in of_model]
            bars = [
                [0 if low is None else max(0, value - low) for value, (low, _) in zip(values, bounds, strict=True)],
                [0 if high is None else max(0, high - value) for value, (_, high) in zip(values, bounds, strict=True)],
            ]
            axes.barh(places, values, height, xerr=bars, label=model, error_kw={"elinewidth": 0.8, "capsize": 2})
        axes.set(xlabel=f"{label}, %", xlim=(0, 105))
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(sources)), [source[-40:] for source in sources], fontsize=8)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8)
    figure.suptitle("Answers to held-out rows (95% intervals)", fontsize=10)
    _save(figure, path)


def length_name(length: int) -> str:
    """A length as 512, 1k or 32k; lengths that are not multiples of 1,024 are written in full."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _length_axis(axes: Any, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_name(round(value))))


def _save(figure: Figure, path: Path) -> None:
    # Without this, matplotlib writes its version into the file.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
