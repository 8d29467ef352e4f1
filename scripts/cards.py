"""Start DVC's queue with one worker per GPU, until the queue is empty.

    dvc exp run --queue -S 'train.seed=0,1,2,3'
    python scripts/cards.py 0 1              two experiments at a time, on the cards 0 and 1

A card is a value of CUDA_VISIBLE_DEVICES: a number as in nvidia-smi, or a UUID. An experiment's processes see only
that card, as device 0. The script needs only the standard library.
"""

import argparse
import os
import re
import subprocess
import sys
import time

_SECONDS = 60  # a worker takes a few seconds to report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="+", metavar="CARD", help="cards of this machine; name each only once")
    cards = parser.parse_args().cards
    if len(set(cards)) < len(cards):
        print(f"cards: each card takes only one worker, but these were named: {' '.join(cards)}", file=sys.stderr)
        return 2
    if running := workers():
        print(
            f"cards: {running} workers are already running on cards of their own. Wait for them, or stop them with "
            "`dvc queue stop`.",
            file=sys.stderr,
        )
        return 1
    for number, card in enumerate(cards, start=1):
        # DVC counts its workers: asked for N, it starts those that are missing, which is one here
        subprocess.run(
            ["dvc", "queue", "start", "--quiet", "--jobs", str(number)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": card},
            check=True,
        )
        if not reports(number):
            print(f"cards: no more than {number - 1} workers were needed; the queue is empty")
            return 0
        print(f"cards: started a worker on card {card}")
    return 0


def workers() -> int:
    """Return the number of workers of this project's queue."""
    status = subprocess.run(["dvc", "queue", "status"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Worker status: (\d+) active, (\d+) idle", status)
    return int(found[1]) + int(found[2]) if found else 0


def reports(number: int) -> bool:
    """Wait until `number` workers report. Without the wait, DVC would start them again, on the next card."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if workers() >= number:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
