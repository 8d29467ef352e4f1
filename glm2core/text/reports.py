"""What tokenize reports: flat metrics, and tables that DVC plots."""

from pathlib import Path

from glm2core.files import atomic_path, write_csv
from glm2core.text.encode import EncodeReport
from glm2core.text.tokenizer import SpTokenizer

CUTS = (
    "responses_cut",
    "prompts_without_oldest_rounds",
    "rounds_dropped",
    "texts_cut_in_the_middle",
    "prompts_cut_left",
    "prompts_cut_right",
)
_BINS = 50


def tokenize_metrics(report: EncodeReport, tokenizer: SpTokenizer) -> dict[str, int | float]:
    """Figures of the tokenize stage; counts of cuts are of rows, rounds or responses, as they say."""
    rows = report.totals.rows
    return {
        **{f"rows_{split}": count for split, count in report.rows.items()},
        "rows_dropped": len(report.dropped),
        "tokens": report.totals.tokens,
        "tokens_supervised": report.supervised_tokens,
        "tokens_mean": report.totals.tokens / max(rows, 1),
        "tokens_longest": report.totals.longest,
        "vocabulary_size": len(tokenizer),
        **{name: report.cuts[name] for name in CUTS},
    }


def write_tokenize_tables(report: EncodeReport, examples: str, folder: Path) -> None:
    """lengths.csv: rows by tokens; cuts.csv; dropped.csv: rows without a pair; examples.md."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        write_csv(partial / "lengths.csv", ("tokens", "prompts", "responses", "rows"), _length_table(report))
        cuts = [(name.replace("_", " "), report.cuts[name]) for name in CUTS]
        write_csv(partial / "cuts.csv", ("cut", "count"), [*cuts, ("rows dropped", len(report.dropped))])
        write_csv(partial / "dropped.csv", ("split", "id", "reason"), report.dropped)
        (partial / "examples.md").write_text(examples, encoding="utf-8")


def _length_table(report: EncodeReport) -> list[tuple[int, ...]]:
    """A line a bin: its first token count, then rows whose prompt, response or whole falls into it."""
    width = max(report.totals.longest // _BINS, 1)
    columns = [counts.histogram(width) for counts in (report.sources, report.targets, report.totals)]
    bins = max(map(len, columns))
    padded = [column + [0] * (bins - len(column)) for column in columns]
    return [(i * width, *counts) for i, counts in enumerate(zip(*padded, strict=True))]
