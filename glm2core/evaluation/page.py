"""Writes report.html, one file that shows an evaluation in a browser without scripts or network.

All texts on the page are escaped.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from glm2core.evaluation.page_parts import Points, curves, grid, table, text
from glm2core.evaluation.report import answers_table
from glm2core.evaluation.worst import Miss, WorstAnswer, misses, worst_answers
from glm2core.params import Params, changed
from glm2core.result_tables import ANSWERS, RETRIEVAL, retrieval_table
from glm2core.result_tables import answers_table as headline_answers
from glm2core.text.html_text import write_within

PAGE = "report.html"
MOST_BYTES = 5_000_000
_ROOM_FOR_NOTES = 5_000  # bytes
_MOST_SOURCES = 100
_FIGURES = {
    "retrieval_accuracy": ("found in long texts, %", 100, ".1f"),
    "effective_context_length": ("effective context, tokens", 1, ",.0f"),
    "test_loss": ("held-out loss", 1, ".3f"),
    "exact_match": ("exact answers, %", 1, ".0f"),
    "rouge_l": ("ROUGE-L", 1, ".1f"),
    "short_context_change": ("change on short texts, points", 100, "+.1f"),
    "general_loss_change": ("change in loss on other rows", 1, "+.3f"),
}

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation of a tuned model</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --faint: #666; --line: #d6d6d6; --box: #f4f4f4;
  --k0: #0b62a8; --k1: #b3480a; --k2: #1d7a3e; --k3: #7a3fa0; --k4: #8a6a00; --k5: #b0206a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --faint: #a8a8a8; --line: #444;
  --box: #232323; --k0: #6cb6f5; --k1: #f59a5f; --k2: #6fcf8e; --k3: #c79bea; --k4: #e0c050; --k5: #f58abf; } }
body { font: 15px/1.5 sans-serif; color: var(--ink); background: var(--paper); max-width: 1200px; margin: 0 auto;
  padding: 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin: 2em 0 0.5em; } h3 { font-size: 1em; margin: 1.2em 0 0.4em; }
p { margin: 0.4em 0; } .faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.7em; border-bottom: 1px solid var(--line); text-align: right; unicode-bidi: isolate;
  white-space: nowrap; }
.long { white-space: normal; text-align: left; min-width: 16em; max-width: 40em; overflow-wrap: anywhere; }
th:first-child { text-align: left; } th { font-weight: 600; }
.grid td { text-align: center; min-width: 2.2em; padding: 0.35em 0.3em; } .grid th { padding: 0.35em 0.4em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.6em; margin: 1em 0; }
.figures div { background: var(--box); padding: 0.6em 0.8em; border-radius: 6px; } .figures b { font-size: 1.5em; }
.figures span { display: block; color: var(--faint); }
svg { width: 100%; max-width: 800px; height: auto; } svg text { fill: var(--faint); font-size: 12px; }
.rule { stroke: var(--line); fill: none; } .line { fill: none; stroke-width: 2; stroke-linecap: round; }
.keys span { margin-right: 1em; white-space: normal; overflow-wrap: anywhere; }
.k0 { stroke: var(--k0); color: var(--k0); } .k1 { stroke: var(--k1); color: var(--k1); }
.k2 { stroke: var(--k2); color: var(--k2); } .k3 { stroke: var(--k3); color: var(--k3); }
.k4 { stroke: var(--k4); color: var(--k4); } .k5 { stroke: var(--k5); color: var(--k5); }
.beside { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0.6em; margin: 0.6em 0 1.2em; }
.beside div { background: var(--box); padding: 0.5em 0.7em; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.beside span { display: block; color: var(--faint); font-size: 0.85em; }
.params td { text-align: left; }
@media (max-width: 700px) { .beside { grid-template-columns: 1fr; } body { padding: 0.7em; } }
</style></head><body>
<h1>Evaluation of a tuned model</h1>
"""
_END = "</body></html>\n"


def write_page(reports: Path, training: Path, metrics: dict[str, Any], params: Params, path: Path, texts: bool) -> None:
    """Write the page. If the page would exceed 5 MB, sections are left out, and its end shows how many.

    The same reports give the same bytes.

    Args:
        reports: folder with the evaluation's files; if a table is missing, its section is left out.
        training: folder of the train stage, with validation.csv and validation_by_source.csv.
        metrics: the contents of metrics/evaluate.json.
        texts: whether prompts and answers are shown.
    """
    room = MOST_BYTES - len((_HEAD + _END).encode()) - _ROOM_FOR_NOTES
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_HEAD)
        if left_out := write_within(file, _sections(reports, training, metrics, params, texts), room):
            file.write(f"<p>{left_out:,} more sections are left out to limit the size of the page.</p>\n")
        file.write(_END)


def _sections(reports: Path, training: Path, metrics: dict[str, Any], params: Params, texts: bool) -> Iterator[str]:
    yield _headline(metrics)
    header, lines = answers_table(reports)
    if lines:
        yield "<h2>Before and after, by source</h2>\n" + _note("base -> tuned, with 95% intervals")
        yield table(header, lines[:_MOST_SOURCES])
        if len(lines) > _MOST_SOURCES:
            yield _note(f"{len(lines) - _MOST_SOURCES:,} more are in before_after.csv")
    yield from _grids(reports / "retrieval_grid.csv")
    yield _training(training)
    if texts:
        yield from _worst(worst_answers(reports), misses(reports))
    else:
        yield "<h2>Worst answers</h2>\n" + _note("Texts are left out of this copy (tracking.log_examples is false).")
    yield _params(params)


def _headline(metrics: dict[str, Any]) -> str:
    boxes = "".join(
        f"<div><b>{metrics[name] * scale:{form}}</b><span>{label}</span></div>"
        for name, (label, scale, form) in _FIGURES.items()
        if metrics.get(name) is not None and math.isfinite(metrics[name])
    )
    found = f'<div class="figures">{boxes}</div>\n' if boxes else ""
    answers, rows = headline_answers(metrics)
    # Sources have their own section
    for title, (header, lines) in ((RETRIEVAL, retrieval_table(metrics)), (ANSWERS, (answers, rows[:1]))):
        found += f"<h2>{text(title.capitalize())}</h2>\n{table(header, lines)}" if lines else ""
    return found


def _grids(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    yield "<h2>Found by length and depth, %</h2>\n" + _note(
        "Columns: length in tokens. Rows: depth, 0 = start of the text. Orange = none found, blue = all found."
    )
    cells = pl.read_csv(path)
    for (task,), group in cells.group_by("task", maintain_order=True):
        lengths = sorted(set(group["length"]))
        depths = sorted(set(group["depth"]), key=lambda depth: -1 if depth is None else depth)
        shares = {(row["depth"], row["length"]): row["accuracy"] for row in group.to_dicts()}
        lines = [(_depth(depth), [shares.get((depth, length)) for length in lengths]) for depth in depths]
        yield f"<h3>{text(task)}</h3>\n{grid('depth', [f'{length:,}' for length in lengths], lines)}"


def _training(folder: Path) -> str:
    drawn = curves({"validation loss": _points(folder / "validation.csv").get("", [])}, "step")
    by_source = curves(_points(folder / "validation_by_source.csv"), "step")
    if not drawn:
        return ""
    return (
        f"<h2>Training curves</h2>\n<h3>Validation loss</h3>\n{drawn}"
        + (f"<h3>By source</h3>\n{by_source}" if by_source else "")
        + _note("Training loss, learning rate and speed by step: reports/train/curves.csv, or make ui.")
    )


def _points(path: Path) -> dict[str, Points]:
    """Map each source to its finite losses by step; if there is no source column, the source's name is empty."""
    if not path.is_file():
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in pl.read_csv(path, infer_schema_length=None).to_dicts():
        loss = row["validation_loss"]
        if loss is not None and math.isfinite(float(loss)):
            found.setdefault(str(row.get("source", "")), []).append((float(row["step"]), float(loss)))
    return dict(found)


def _worst(answers: list[WorstAnswer], missed: list[Miss]) -> Iterator[str]:
    if answers:
        yield "<h2>Worst answers to held-out rows</h2>\n" + _note("The lowest ROUGE-L scores of each source.")
    for worst in answers:
        yield f"<h3>{text(worst.source)}, ROUGE-L {worst.rouge_l:.1f}</h3>\n" + _beside(
            {"prompt": worst.prompt, "expected": worst.expected, "given": worst.given}
        )
    if missed:
        yield "<h2>Missed in long texts</h2>\n" + _note("The first misses of each task and length.")
        lines = [[m.task, f"{m.tokens:,}", _depth(m.depth), m.expected, m.given] for m in missed]
        yield table(["task", "tokens", "depth", "expected", "given"], lines)


def _beside(texts: dict[str, str]) -> str:
    boxes = "".join(f"<div><span>{name}</span>{text(said)}</div>" for name, said in texts.items())
    return f'<div class="beside">{boxes}</div>\n'


def _params(params: Params) -> str:
    lines = [
        [key, _value(value), _value(default)] for key, (value, default) in changed(params).items()
    ]  # params without a default are included, because they name the training data
    body = table(["param", "value", "default"], lines) if lines else _note("none")
    return f'<h2>Params that differ from their defaults</h2>\n<div class="params">{body}</div>\n'


def _value(value: object) -> str:
    """A value as in params.yaml; a section in a list shows only the keys that differ from their defaults."""
    if isinstance(value, BaseModel):
        return "; ".join(f"{key}: {_value(own)}" for key, (own, _) in changed(value).items())
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _depth(depth: float | None) -> str:
    return "–" if depth is None else f"{depth:.2f}"


def _note(sentence: str) -> str:
    return f'<p class="faint">{text(sentence)}</p>\n'
