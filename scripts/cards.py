"""Start DVC's queue with a worker for each GPU: one worker, one card, until the queue is empty.

    dvc exp run --queue -S 'train.seed=0,1,2,3'
    python scripts/cards.py 0 1              two experiments at a time, on the cards 0 and 1

A card is a name that CUDA_VISIBLE_DEVICES takes: a number as nvidia-smi counts, or a UUID. What an experiment starts
sees that card alone, as its device 0. Standard library only.
"""

import argparse
import os
import re
import subprocess
import sys
import time

_SECONDS = 60  # a worker takes a few to report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="+", metavar="CARD", help="of this machine, each once")
    cards = parser.parse_args().cards
    if len(set(cards)) < len(cards):
        print(f"cards: each card takes one worker; got {' '.join(cards)}", file=sys.stderr)
        return 2
    if running := workers():
        print(
            f"cards: {running} workers are running already, on cards that are theirs. Wait for them, or end them by "
            "`dvc queue stop`.",
            file=sys.stderr,
        )
        return 1
    for number, card in enumerate(cards, start=1):
        # DVC counts its workers: asked for N, it starts those that are missing, here the one
        subprocess.run(
            ["dvc", "queue", "start", "--quiet", "--jobs", str(number)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": card},
            check=True,
        )
        if not reports(number):
            print(f"cards: no more than {number - 1} workers were needed; the queue is empty")
            return 0
        print(f"cards: a worker on card {card}")
    return 0


def workers() -> int:
    """Workers of this project's queue."""
    status = subprocess.run(["dvc", "queue", "status"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Worker status: (\d+) active, (\d+) idle", status)
    return int(found[1]) + int(found[2]) if found else 0


def reports(number: int) -> bool:
    """Whether so many workers are there; before, DVC would start them once more, on the next card."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if workers() >= number:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
