"""Rebuild the embedded base model with the pipeline itself, and put it into models/base.

    make base                                   in a temporary folder
    python scripts/base.py --work ../base-work  in a folder that is kept; the same command continues an interrupted run

The base is trained in eight runs. For each run, a clone of the committed state runs `dvc repro` with the run's params
file from models/base as its params. The data of each run contains rows from `scripts/copying.py`. The first run trains
a network from scratch, and each later run tunes the result of the run before. The last result replaces the weights and
the tokenizer in models/base, and a card is added that says how the base was made and what it scored. This takes five
hours. The script needs only the standard library.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "models" / "base"
CARD = "README.md"
SETTLED = "settled.json"


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Args:
        params: the name of a params file in models/base.
        copying: the options for scripts/copying.py.
    """

    params: str
    copying: str


RUNS = (
    Run("params.yaml", "--rows 16000 --seed 5"),
    Run("further.yaml", "--rows 8000 --seed 6"),
    Run("copying.yaml", "--rows 30000 --seed 7"),
    Run("comparing.yaml", "--rows 60000 --seed 8 --checks 0.35"),
    Run("judging.yaml", "--rows 30000 --seed 9 --checks 0.45 --lists 0.2"),
    Run("pairs.yaml", "--rows 6500 --seed 10 --checks 0.4 --lists 0.25 --pairs 0.6"),
    Run("equality.yaml", "--rows 16000 --seed 11 --checks 0.4 --lists 0.25 --pairs 0.9"),
    Run("together.yaml", "--rows 30000 --seed 12 --checks 0.35 --lists 0.3 --pairs 0.2"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the clones; it is kept, and a run continues in it")
    arguments = parser.parse_args()
    if arguments.work is not None:
        return _make(arguments.work)
    with tempfile.TemporaryDirectory() as folder:
        return _make(Path(folder))


def _make(work: Path) -> int:
    clones: list[Path] = []
    for run in RUNS:
        clone = work / Path(run.params).stem
        if not (clone / ".git").exists():
            _prepare(clone, run, clones[-1] if clones else None)
        done = subprocess.run(["dvc", "repro"], cwd=clone, check=False)
        if done.returncode:
            print(f"base: the pipeline in {clone} stopped; {BASE} is unchanged", file=sys.stderr)
            return done.returncode
        clones.append(clone)
    _take(clones[-1] / "models" / "tuned", BASE)
    (BASE / CARD).write_text(_card(clones), encoding="utf-8")
    print(f"base: {BASE.relative_to(ROOT)} was replaced; its card is {CARD} there")
    return 0


def _prepare(clone: Path, run: Run, before: Path | None) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    shutil.copy2(BASE / run.params, clone / "params.yaml")
    script = [sys.executable, "scripts/copying.py", "data/raw/copying.jsonl", *run.copying.split()]
    subprocess.run(script, cwd=clone, check=True)
    if before is not None:
        _take(before / "models" / "tuned", clone / "models" / "base")


def _take(made: Path, into: Path) -> None:
    for file in sorted(made.iterdir()):
        if file.name != SETTLED:  # the params files in the folder contain the same values
            shutil.copy2(file, into / file.name)


def _card(clones: list[Path]) -> str:
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True).stdout[:12]
        for clone in clones
    ]
    trained = [_metrics(clone, "train") for clone in clones]
    steps, tokens, seconds = (sum(run[key] for run in trained) for key in ("steps", "tokens", "seconds"))
    return f"""# The embedded base model

A ChatGLM2 network of {trained[0]["trainable_parameters"]:,} parameters with its tokenizer, made by this project's own
pipeline from its own data: generated records with LongEval's lines and RULER's kinds, notes to copy from, and the small
files of `data/raw`. It stands in for released weights, so that the whole pipeline can be shown on any laptop. Positions
are plain RoPE, below 2,048. Licence: Apache-2.0, like the project.

- made by: `make base`, with {
        ", then ".join(
            f"[{run.params}]({run.params}) from commit `{commit}`" for run, commit in zip(RUNS, commits, strict=True)
        )
    }
- training: {steps:,} steps, {tokens:,} tokens, {seconds / 60:.0f} minutes

Right answers with plain RoPE and held-out keys and values; for RULER's kinds, the fraction of references found:

{_table(_metrics(clones[-1], "evaluate"))}
"""


def _table(evaluate: dict[str, Any]) -> str:
    cells: dict[int, dict[str, float]] = {}
    for name, value in evaluate.items():
        task, _, length = name.removeprefix("retrieval_").rpartition("_")
        if name.startswith("retrieval_") and length.isdigit():
            cells.setdefault(int(length), {})[task] = value
    tasks = sorted({task for row in cells.values() for task in row})
    rows = [
        f"| {length:,} | " + " | ".join(f"{row[task]:.0%}" if task in row else "–" for task in tasks) + " |"
        for length, row in sorted(cells.items())
    ]
    return "\n".join([f"| tokens | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}", *rows])


def _metrics(clone: Path, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((clone / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    sys.exit(main())
