"""Left padding: the ends of all rows stand in one column. `B` rows, `T` tokens of the longest."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def left_padded(rows: Sequence[np.ndarray], fill: int, device: torch.device) -> Tensor:
    """Rows [T_i] as one tensor [B, T] of int64, `fill` in front of the shorter ones."""
    longest = max(map(len, rows))
    padded = np.full((len(rows), longest), fill, np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[longest - len(values) :] = values
    return torch.from_numpy(padded).to(device)


def left_mask(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """1 over tokens, 0 over the padding of `left_padded`. [B, T]"""
    return left_padded([np.ones(len(row), np.int64) for row in rows], 0, device)
