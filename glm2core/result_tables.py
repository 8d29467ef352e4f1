"""Two small tables from metrics/evaluate.json: retrieval in long texts, and answers to held-out rows."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RETRIEVAL = "right answers by context length in tokens, %"
ANSWERS = "answers to held-out rows, base -> tuned"
_BASE = "base_"
_RETRIEVAL = re.compile(r"retrieval_(.+)_(\d+)")  # of a task at a length
_SCORES = {"exact_match": "{:.0f}", "rouge_l": "{:.1f}", "bleu_4": "{:.1f}", "answers_loss": "{:.2f}"}
_UNKNOWN = "–"


def retrieval_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of a table with one column for each length.

    Each task has a line for the base, if the base was asked, and a line for the tuned model.
    """
    found = {key: match.groups() for key in metrics if (match := _RETRIEVAL.fullmatch(key))}
    lengths = sorted({int(length) for _, length in found.values()})
    tasks = list(dict.fromkeys(task for task, _ in found.values()))
    lines = []
    for task in tasks:
        for model, prefix in (("base", _BASE), ("tuned", "")):
            values = [metrics.get(f"{prefix}retrieval_{task}_{length}") for length in lengths]
            if any(value is not None for value in values):
                lines.append([f"{task}, {model}", *(_shown("{:.0f}", value and 100 * value) for value in values)])
    return ["", *(f"{length:,}" for length in lengths)], lines


def answers_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return a table's header, one line for all held-out rows, and one line for each generated source."""
    generated = {name: of_it for name, of_it in metrics.get("by_source", {}).items() if not Path(name).suffix}
    groups = {"all": metrics, **generated} if any(name in metrics for name in _SCORES) else {}
    lines = [
        [name, *(_change(form, values.get(f"{_BASE}{key}"), values.get(key)) for key, form in _SCORES.items())]
        for name, values in groups.items()
    ]
    return ["", "exact match, %", "ROUGE-L", "BLEU-4", "loss"], lines


def result_note(metrics: dict[str, Any]) -> str:
    """Return both tables as Markdown; a table without lines is left out."""
    tables = ((RETRIEVAL, *retrieval_table(metrics)), (ANSWERS, *answers_table(metrics)))
    return "\n\n".join(f"**{title}**\n\n{_markdown(header, lines)}" for title, header, lines in tables if lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _change(form: str, before: float | None, after: float | None) -> str:
    return _shown(form, after) if before is None else f"{_shown(form, before)} -> {_shown(form, after)}"


def _shown(form: str, value: float | None) -> str:
    return _UNKNOWN if value is None else form.format(value)
