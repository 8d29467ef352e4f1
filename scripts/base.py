"""Make the embedded base model anew, by the pipeline itself, and put it into models/base.

    make base                                   in a temporary folder
    python scripts/base.py --work ../base-work  in a folder that stays: the same command goes on after an interruption

Two clones of the committed state run `dvc repro`, each with rows of `scripts/copying.py` among its data: the first
with models/base/params.yaml as its params, from scratch; the second with models/base/further.yaml, from what the first
made. The result takes the place of the weights and the tokenizer in models/base, with a card that says how it was made
and what it scored. It takes an hour and a half or more. Standard library only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "models" / "base"
PARAMS = ("params.yaml", "further.yaml")
CARD = "README.md"
SETTLED = "settled.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the clone; kept, and gone on with when it is there")
    arguments = parser.parse_args()
    if arguments.work is not None:
        return _make(arguments.work)
    with tempfile.TemporaryDirectory() as folder:
        return _make(Path(folder))


def _make(work: Path) -> int:
    made = None
    for number, params in enumerate(PARAMS, 1):
        clone = work / params.removesuffix(".yaml")
        if not (clone / ".git").exists():
            _prepare(clone, params, number, made)
        done = subprocess.run(["dvc", "repro"], cwd=clone, check=False)
        if done.returncode:
            print(f"base: the pipeline in {clone} stopped; models/base is as it was", file=sys.stderr)
            return done.returncode
        made = clone / "models" / "tuned"
    assert made is not None
    _take(made, BASE)
    (BASE / CARD).write_text(_card(work), encoding="utf-8")
    print(f"base: models/base is new; its card is {BASE.relative_to(ROOT) / CARD}")
    return 0


def _prepare(clone: Path, params: str, number: int, made: Path | None) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    shutil.copy2(BASE / params, clone / "params.yaml")
    rows = [sys.executable, "scripts/copying.py", "data/raw/copying.jsonl", "--seed", str(number)]
    subprocess.run(rows, cwd=clone, check=True)
    if made is not None:
        _take(made, clone / "models" / "base")


def _take(made: Path, into: Path) -> None:
    for file in sorted(made.iterdir()):
        if file.name != SETTLED:  # the params beside it say the same
            shutil.copy2(file, into / file.name)


def _card(work: Path) -> str:
    clones = [work / params.removesuffix(".yaml") for params in PARAMS]
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True).stdout[:12]
        for clone in clones
    ]
    first, further = (_metrics(clone, "train") for clone in clones)
    evaluate = _metrics(clones[-1], "evaluate")
    cells: dict[int, dict[str, float]] = {}
    for name, value in evaluate.items():
        if name.startswith("retrieval_") and name.rpartition("_")[2].isdigit():
            task, _, length = name.removeprefix("retrieval_").rpartition("_")
            cells.setdefault(int(length), {})[task] = value
    tasks = sorted({task for row in cells.values() for task in row})
    table = "\n".join(
        f"| {length:,} | " + " | ".join(f"{row[task]:.0%}" if task in row else "–" for task in tasks) + " |"
        for length, row in sorted(cells.items())
    )
    made_by = "[params.yaml](params.yaml), then [further.yaml](further.yaml)"
    return f"""# The embedded base model

A ChatGLM2 network of {first["trainable_parameters"]:,} parameters with its tokenizer, made by this project's own
pipeline from its own data: generated records with LongEval's lines and RULER's kinds, notes to copy from, and the small
files of `data/raw`. It stands in for released weights, so that the pipeline shows on any laptop what it does with
those. Positions are plain RoPE, below 2,048. Licence: Apache-2.0, as the project.

- made by: `make base`, from commits `{"` and `".join(commits)}`, with {made_by}
- training: {first["steps"] + further["steps"]:,} steps, {first["tokens"] + further["tokens"]:,} tokens, \
{(first["seconds"] + further["seconds"]) / 60:.0f} minutes

Answers right by plain RoPE (RULER's kinds: share of the references found), keys and values never trained on:

| tokens | {" | ".join(tasks)} |
|---|{"---|" * len(tasks)}
{table}
"""


def _metrics(clone: Path, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((clone / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    sys.exit(main())
