"""Evaluates models/tuned: its loss on held-out rows, its answers with ROUGE and BLEU, and long-context retrieval."""

import sys
import tempfile
import time
from pathlib import Path

from glm2core.console import closing_table, print_table, quiet_libraries
from glm2core.files import atomic_path, write_json
from glm2core.params import Params, read_base, read_tuning_record, settle
from glm2core.tracking import headlines, stage_run
from stages.runner import run_stage

MODEL = Path("models/tuned")
TEST = Path("data/tokenized/test.parquet")
CONVERTED = Path("data/converted/test.parquet")
TRAINING = Path("reports/train")
REPORTS = Path("reports/evaluate")
METRICS = Path("metrics/evaluate.json")


def evaluate(params: Params) -> None:
    # Imported here, because loading torch takes seconds, and params are checked first
    quiet_libraries()
    from glm2core.evaluation.page import PAGE, write_page
    from glm2core.evaluation.report import PICTURES, PREDICTIONS, RETRIEVAL_PREDICTIONS, answers_table
    from glm2core.evaluation.run import Evaluation
    from glm2core.hardware import choose_device, peak_memory_gib

    started = time.perf_counter()
    device = choose_device(params.evaluate.device, key="evaluate.device")
    record = read_tuning_record(MODEL)
    base = record.base if record else read_base(params.model.base, params.model.preset)
    settled = settle(params, base, "cuda" if device.type == "cuda" else "cpu", record)
    print("\n".join(["settled:", *settled.lines("evaluate")]))
    with stage_run("evaluate", params) as run:
        run.settled(settled.values("evaluate"))
        run.dataset(TEST, context="test")
        evaluation = Evaluation.load(MODEL, TEST, CONVERTED, settled.evaluate, settled.model, settled.tokenize)
        with atomic_path(REPORTS) as partial:
            partial.mkdir()
            metrics = evaluation.loss(partial)
            metrics |= evaluation.answers(partial)
            metrics |= evaluation.retrieval(partial, report=run.report)
            write_page(partial, TRAINING, metrics, params, partial / PAGE, texts=True)
        metrics["peak_memory_gib"] = peak_memory_gib(evaluation.model.device)
        metrics["seconds"] = time.perf_counter() - started
        write_json(METRICS, metrics | settled.metrics("evaluate"))
        evaluation.journal.remove()
        run.headline(metrics, headlines("evaluate", metrics))
        run.result(metrics)
        with_texts = {PREDICTIONS, RETRIEVAL_PREDICTIONS, PAGE}
        for file in sorted(REPORTS.iterdir()):
            if params.tracking.log_examples or file.name not in with_texts:
                run.artifact(file, on_row=file.name in {*PICTURES, PAGE})
        if not params.tracking.log_examples:
            with tempfile.TemporaryDirectory() as folder:
                page = Path(folder) / PAGE
                write_page(REPORTS, TRAINING, metrics, params, page, texts=False)
                run.artifact(page, on_row=True)
    print_table("answers to held-out rows, base -> tuned (95% interval)", *answers_table(REPORTS))
    closing_table(
        "evaluate",
        dict(metrics),
        {
            "the report on one page": REPORTS / PAGE,
            "every answer": REPORTS / PREDICTIONS,
            "retrieval by length and depth": REPORTS,
            "all runs": "make ui",
            "curves": "dvc plots show",
        },
    )


if __name__ == "__main__":
    sys.exit(run_stage("evaluate", evaluate))
