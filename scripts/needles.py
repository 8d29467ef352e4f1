"""Write data/examples/needles.jsonl for `predict`: long records, each with a question about one line.

    python scripts/needles.py

The keys and values are those for evaluation, which are never trained on. The same commit writes the same bytes.
"""

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from glm2core.lines.records import RECORD_OVER, answer_text, make_record, question_text, record_text  # noqa: E402

FILE = ROOT / "data/examples/needles.jsonl"
_CHARACTERS = (1_500, 6_000, 12_000, 24_000)  # two or three per token of the embedded tokenizer


def rows() -> list[dict[str, str]]:
    """Alpaca rows, the shortest first."""
    made = []
    for seed, size in enumerate(_CHARACTERS):
        rng = random.Random(f"needles {seed}")
        record = make_record(rng, size, len)
        line = rng.choice(record)
        question = record_text(record) + RECORD_OVER + question_text(line.key)
        made.append({"instruction": question, "input": "", "output": answer_text(line)})
    return made


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
