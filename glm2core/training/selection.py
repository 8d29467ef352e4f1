"""The choice of training rows and of the number of steps."""

import hashlib
import math
import re

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.params import TrainParams
from glm2core.text.batching import length_sorted_batches, rows_of_epoch
from glm2core.text.dataset import TokenizedDataset

# Convert names the source of generated lines after its place in params.yaml, and that of generated analysis rows
# `analysis`; it gives these names to no file.
_GENERATED = re.compile(r"convert\.sources\[\d+\]|analysis")
_HASH_BYTES = 8


def without_generated(rows: TokenizedDataset, share: float, notice: Notice = print) -> TokenizedDataset:
    """Keep all rows from files, and a share of the generated rows (formats lines and analysis), always the same ones.

    Args:
        share: share of the generated rows to keep, 0 to 1.

    Raises:
        UserError: no row would be left.
    """
    if share == 1:
        return rows
    named = enumerate(zip(rows.ids, rows.sources, strict=True))
    kept = [number for number, (id, source) in named if not _GENERATED.fullmatch(source) or _point(id) < share]
    left_out = len(rows) - len(kept)
    if not left_out:
        return rows
    if not kept:
        raise UserError(
            f"all {len(rows):,} training rows are generated, and train.generated_rows is {share:g}. Add rows of "
            "your own to convert.sources, or set train.generated_rows to 1."
        )
    notice(f"train.generated_rows {share:g}: {left_out:,} of {len(rows):,} training rows are left out")
    return rows.take(kept)


def with_steps(params: TrainParams, rows: TokenizedDataset, processes: int, notice: Notice = print) -> TrainParams:
    """If the params give epochs, replace them with the number of optimizer steps that they take on these rows."""
    if params.epochs is None:
        return params
    taken, _ = rows_of_epoch(rows.weights, seed=params.seed, epoch=0)
    batches = length_sorted_batches(rows.lengths[taken], params.batch_tokens, seed=params.seed, epoch=0, shuffle=True)
    steps = math.ceil(params.epochs * len(batches) / (processes * params.gradient_accumulation_steps))
    notice(f"train.epochs {params.epochs:g}: {steps:,} steps over {len(rows):,} rows")
    return params.model_copy(update={"max_steps": max(1, steps)})


def _point(id: str) -> float:
    """A point in [0, 1) derived from the row's id."""
    digest = hashlib.blake2b(id.encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big") / 2 ** (8 * _HASH_BYTES)
