"""Tokenizes data/converted/, and writes supervised token pairs and their tokenizer to data/tokenized/."""

import sys
from pathlib import Path

from glm2core.console import closing_table, progress_bar
from glm2core.conversation import SPLITS
from glm2core.files import atomic_path, write_json
from glm2core.params import Params, settle_tokenize
from glm2core.tracking import headlines, stage_run
from stages.runner import run_stage

CONVERTED = Path("data/converted")
TOKENIZED = Path("data/tokenized")
REPORTS = Path("reports/tokenize")
METRICS = Path("metrics/tokenize.json")
EXAMPLES = "examples.md"


def tokenize(params: Params) -> None:
    # Imported here, so that wrong params are reported first.
    from glm2core.text.encode import converted_rows, encode_converted, render_examples, tokenizer_for
    from glm2core.text.pairs import PairBuilder
    from glm2core.text.reports import ROWS_PAGE, tokenize_metrics, write_tokenize_tables
    from glm2core.text.shown_rows import example_rows

    settled = settle_tokenize(params.tokenize)
    with stage_run("tokenize", params) as run:
        run.settled({"tokenize.threads": settled.threads})
        tokenizer, template, evidence = tokenizer_for(params.model.base, settled, CONVERTED)
        print(f"tokenizer: {params.model.base or 'trained here'}, {len(tokenizer):,} ids")
        print(f"prompt template: {template} ({evidence})")
        with atomic_path(TOKENIZED) as partial, progress_bar("tokenize", converted_rows(CONVERTED)) as (bar, task):
            report = encode_converted(
                CONVERTED, partial, tokenizer, template, settled, progress=lambda rows: bar.advance(task, rows)
            )
        metrics = tokenize_metrics(report, TOKENIZED, tokenizer)
        builder = PairBuilder(tokenizer, template, settled.pair_format, threads=settled.threads)
        rows = example_rows(CONVERTED, TOKENIZED, tokenizer, builder)
        write_tokenize_tables(report, TOKENIZED, render_examples(report, tokenizer), REPORTS, rows)
        write_json(METRICS, metrics)
        run.headline(metrics, headlines("tokenize", metrics))
        for split in SPLITS:
            run.dataset(TOKENIZED / f"{split}.parquet", context=split)
        for file in sorted(REPORTS.iterdir()):
            if params.tracking.log_examples or file.name not in (EXAMPLES, ROWS_PAGE):
                run.artifact(file)
    closing_table(
        "tokenize",
        dict(metrics),
        {"rows as the model sees them": REPORTS / ROWS_PAGE, "token lengths": "dvc plots show"},
    )


if __name__ == "__main__":
    sys.exit(run_stage("tokenize", tokenize))
