"""Run the sweeps of docs/recipes.md in a temporary clone, and write their result tables.

    python -m benchmarks.sweeps                                  all of them, into docs/sweeps/<name>.csv and .md
    python -m benchmarks.sweeps rope --jobs 2                    one of them, two experiments at a time
    python -m benchmarks.sweeps method --steps 20 --lengths 512 1024 --first 2 --out .sweeps     a quick try

The script clones the committed state, runs the shared stages once, queues and runs the experiments with DVC's own
commands, and takes the table from `dvc exp show`. For a CPU, runs are shortened to 300 steps per model and contexts of
up to 4,096 tokens. The figures therefore compare the experiments with each other, not with the default run.
"""

import argparse
import csv
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import print_machine

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "train.eval_steps=100",
    "train.save_steps=100",
    "train.threads=1",
    "evaluate.threads=1",
    "evaluate.generation.rows=16",
    "evaluate.retrieval.tasks=[lines]",
    "evaluate.retrieval.base_lengths=[]",
    "evaluate.retrieval.contexts=2",
    "evaluate.retrieval.questions=25",
)
FIGURES = ("validation_loss", "test_loss", "rouge_l", "retrieval_accuracy", "effective_context_length")
BY_LENGTH = "retrieval_lines_"


@dataclass(frozen=True)
class Sweep:
    """One recipe.

    Attributes:
        swept: each swept key, with its values; every combination is an experiment.
        fixed: changes that all experiments of the recipe share.
        shared: the last stage that all experiments share.
    """

    swept: dict[str, tuple[str, ...]]
    fixed: tuple[str, ...] = ()
    shared: str = "tokenize"


SWEEPS = {
    "rope": Sweep({"model.rope.factor": ("2", "4", "8", "16"), "model.rope.type": ("linear", "yarn")}),
    "method": Sweep(
        {"train.method": ("full", "lora", "qlora", "ptuning")},
        ("train.optimizer=adamw", "train.query_scale=1", "train.learning_rate=1e-3"),
    ),
    "loss_on": Sweep({"tokenize.loss_on": ("last", "every")}, shared="convert"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SWEEPS, []], metavar="NAME", help=", ".join(SWEEPS))
    parser.add_argument("--jobs", type=int, default=1, help="number of experiments at a time; each uses one thread (1)")
    parser.add_argument("--steps", type=int, default=300, help="train.max_steps (300)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="context lengths")
    parser.add_argument("--first", type=int, help="run only this many experiments of each sweep")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "sweeps", help="folder of the tables (docs/sweeps)")
    arguments = parser.parse_args()
    print_machine()
    for name in arguments.names or SWEEPS:
        with tempfile.TemporaryDirectory() as folder:
            _run(name, SWEEPS[name], Path(folder) / "glm2core", arguments)


def _run(name: str, sweep: Sweep, clone: Path, arguments: argparse.Namespace) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    settings = [*COMMON, *sweep.fixed, f"train.max_steps={arguments.steps}"]
    settings.append(f"evaluate.retrieval.lengths={arguments.lengths}".replace(" ", ""))
    started = time.perf_counter()
    # Run once here, so that two workers with an empty cache do not both run it.
    _dvc(clone, "repro", sweep.shared)
    _commit(clone)
    combinations = list(itertools.product(*sweep.swept.values()))[: arguments.first]
    for number, combination in enumerate(combinations):
        changes = [*settings, *map("=".join, zip(sweep.swept, combination, strict=True))]
        _dvc(clone, "exp", "run", "--queue", "-n", f"{name}-{number}", *_overrides(changes))
    _work_off(clone, arguments.jobs)
    rows = _table(clone, name, list(sweep.swept))
    minutes = (time.perf_counter() - started) / 60
    note = f"{len(rows)} experiments in {minutes:.1f} minutes, {arguments.jobs} at a time; {_stages_that_ran(clone)}."
    _write(arguments.out, name, rows, f"{note} Settings: `{'` `'.join(settings)}`.")


def _overrides(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("-S", change)]


def _work_off(clone: Path, jobs: int) -> None:
    """Run DVC's queue to its end.

    The workers continue in the background and would hold a pipe open, so the output of their start is not captured.
    """
    _dvc(clone, "queue", "start", "-j", str(jobs))
    while any(word in (status := _output(clone, "queue", "status")) for word in ("Queued", "Running")):
        time.sleep(20)  # each check is a separate process and slows down the workers
    _dvc(clone, "queue", "stop")
    print(status, flush=True)
    if "Failed" in status:
        sys.exit(f"an experiment failed; `dvc queue logs NAME` in {clone} said:\n{_failures(clone, status)}")


def _failures(clone: Path, status: str) -> str:
    names = [line.split()[1] for line in status.splitlines() if "Failed" in line]
    return "\n".join(_output(clone, "queue", "logs", name)[-3000:] for name in names)


def _table(clone: Path, name: str, keys: list[str]) -> list[dict[str, str]]:
    """Return the sweep's experiments from `dvc exp show`: first the swept keys, then the headline figures."""
    shown = list(csv.DictReader(io.StringIO(_output(clone, "exp", "show", "--csv"))))
    own = [row for row in shown if row["Experiment"].startswith(f"{name}-")]
    if not own:
        sys.exit("dvc exp show lists none of the experiments")
    # The committed run's lengths are columns as well; only those asked here count.
    asked = [key for key in own[0] if key.startswith(BY_LENGTH) and any(row[key] for row in own)]
    lengths = sorted(asked, key=lambda key: int(key.split("_")[-1]))
    columns = [*keys, *FIGURES, *lengths]
    rows = [{column: _rounded(row[column]) for column in columns} for row in own]
    return sorted(rows, key=lambda row: [(len(row[key]), row[key]) for key in keys])


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _stages_that_ran(clone: Path) -> str:
    """Return how often each stage actually ran, as counted in MLflow."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("glm2core")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'stage'")
    stages = [run.data.tags["stage"] for run in runs]
    return "stages that ran: " + ", ".join(
        f"{stage} {stages.count(stage)}" for stage in ("convert", "tokenize", "train", "evaluate")
    )


def _write(folder: Path, name: str, rows: list[dict[str, str]], note: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    head = "| " + " | ".join(f"`{key}`" if "." in key else key.replace("_", " ") for key in rows[0]) + " |\n"
    lines = "".join("| " + " | ".join(row.values()) + " |\n" for row in rows)
    text = f"{head}{'|---' * len(rows[0])}|\n{lines}\n{note}\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def _commit(clone: Path) -> None:
    person = ("-c", "user.name=sweeps", "-c", "user.email=sweeps@localhost")
    subprocess.run(
        ["git", *person, "commit", "--quiet", "--allow-empty", "-am", "lock of the shared stages"],
        cwd=clone,
        check=True,
    )


def _dvc(clone: Path, *arguments: str) -> None:
    nowhere = subprocess.DEVNULL
    subprocess.run(["dvc", *arguments], cwd=clone, stdin=nowhere, stdout=nowhere, check=True)


def _output(clone: Path, *arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], cwd=clone, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
