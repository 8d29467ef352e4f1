"""Make the embedded base model anew, by the pipeline itself, and put it into models/base.

    make base                                   in a temporary folder
    python scripts/base.py --work ../base-work  in a folder that stays: the same command goes on after an interruption

A clone of the committed state runs `dvc repro` with models/base/params.yaml as its params. The result takes
the place of the weights and the tokenizer in models/base, with a card that says how it was made and what it
scored. It takes 35 minutes or more. Standard library only.
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
PARAMS = "params.yaml"
CARD = "README.md"
SETTLED = "settled.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the clone; kept, and gone on with when it is there")
    arguments = parser.parse_args()
    if arguments.work is not None:
        return _make(arguments.work)
    with tempfile.TemporaryDirectory() as folder:
        return _make(Path(folder) / "glm2core")


def _make(clone: Path) -> int:
    if not (clone / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.copy2(BASE / PARAMS, clone / PARAMS)
    done = subprocess.run(["dvc", "repro"], cwd=clone, check=False)
    if done.returncode:
        print(f"base: the pipeline in {clone} stopped; models/base is as it was", file=sys.stderr)
        return done.returncode
    for file in sorted((clone / "models" / "tuned").iterdir()):
        if file.name != SETTLED:  # the params beside it say the same
            shutil.copy2(file, BASE / file.name)
    (BASE / CARD).write_text(_card(clone), encoding="utf-8")
    print(f"base: models/base is new; its card is {BASE.relative_to(ROOT) / CARD}")
    return 0


def _card(clone: Path) -> str:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True)
    train, evaluate = (_metrics(clone, stage) for stage in ("train", "evaluate"))
    found = sorted(int(name.rpartition("_")[2]) for name in evaluate if name.startswith("retrieval_lines_"))
    accuracies = "\n".join(f"| {length:,} | {evaluate[f'retrieval_lines_{length}']:.1%} |" for length in found)
    return f"""# The embedded base model

A ChatGLM2 network of {train["trainable_parameters"]:,} parameters with its tokenizer, made by this project's own
pipeline from its own data: the generated retrieval conversations and the small files of `data/raw`. It stands in
for released weights, so that the pipeline shows on any laptop what it does with those. Positions are plain RoPE,
below 2,048. Licence: Apache-2.0, as the project.

- made by: `make base`, from commit `{commit.stdout.strip()[:12]}`, with [params.yaml](params.yaml)
- training: {train["steps"]:,} steps, {train["tokens"]:,} tokens, {train["seconds"] / 60:.0f} minutes
- validation loss: {train["validation_loss_before"]:.3f} before, {train["validation_loss"]:.3f} after

Retrieval of a number among LongEval's lines by plain RoPE, exact match, keys and values never trained on:

| tokens | right |
|---|---|
{accuracies}
"""


def _metrics(clone: Path, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((clone / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    sys.exit(main())
