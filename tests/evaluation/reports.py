"""Reports of an evaluation as the stage writes them, with answers that try to run as code or to reverse lines."""

import json
from pathlib import Path

import polars as pl

from glm2core.evaluation.page import write_page
from glm2core.evaluation.report import (
    PREDICTIONS,
    RETRIEVAL_PREDICTIONS,
    append_records,
    report_answers,
    report_retrieval,
)
from glm2core.evaluation.scores import BASE, TUNED, Answer
from glm2core.evaluation.text_metrics import row_scores
from glm2core.params import load_params
from tests.test_architecture import ROOT

HOSTILE = "<script>document.title='run'</script>\"'&<b>\u202egnol\u2066x\x07\x1b[31m"


def write_reports(folder: Path, rows: int = 8, source: str = "rows.json") -> dict[str, object]:
    """The evaluation's files; half of the rows are answered exactly, the others by hostile texts. Returns metrics."""
    lines, records = [], []
    for number in range(rows):
        reference = f"the right answer {number}"
        answer = reference if number % 2 else HOSTILE
        facts = {"source": source, "kind": "text", "language": "latin", "general": False}
        for model in (TUNED, BASE):
            said = answer if model == TUNED else "nothing"
            scores = row_scores(said, reference)
            lines.append({"model": model, "id": f"row{number}", **scores, "loss": 4.0, "tokens": 2, **facts})
            prompt = {"prompt": f"{HOSTILE} {'long ' * 200}", "reference": reference, "answer": said}
            records.append({"model": model, "source": source, "id": f"row{number}", **prompt})
    with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
        append_records(file, records)
    asked = [
        Answer("lines", length, 0, depth, False, 0.1, length, 41, HOSTILE if depth > 0.5 else "41")
        for length in (512, 1024)
        for depth in (0.1, 0.3, 0.6, 0.9)
    ]
    with (folder / RETRIEVAL_PREDICTIONS).open("w", encoding="utf-8") as file:
        append_records(file, (answer.record() for answer in asked))
    return report_answers(pl.DataFrame(lines), folder) | report_retrieval(asked, [], 2, folder)


def write_training(folder: Path) -> None:
    (folder / "validation.csv").write_text("step,validation_loss\n0,5.5\n10,2.25\n")
    sources = [{"step": step, "source": HOSTILE, "validation_loss": 3.0} for step in (0, 10)]
    pl.DataFrame(sources).write_csv(folder / "validation_by_source.csv")


def hostile_page(folder: Path, *, texts: bool = True, name: str = "report.html") -> Path:
    """A page with every section."""
    metrics = write_reports(folder, source=HOSTILE)
    write_training(folder)
    write_page(folder, folder, json.loads(json.dumps(metrics)), load_params(ROOT / "params.yaml"), folder / name, texts)
    return folder / name
