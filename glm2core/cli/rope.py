"""`rope`: shows a model's RoPE, the errors in half precision, and how other engines would read the model's config."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from glm2core.errors import UserError
from glm2core.family import family_of
from glm2core.model.adapters import base_folder
from glm2core.model.loading import read_config
from glm2core.model.rope import describe_rope
from glm2core.model.served import GLM, HALF_DTYPES, distinct_angles, served

_SHORTEST = 512
_CONFIG = "config.json"


def run(arguments: argparse.Namespace) -> None:
    """Print what `arguments.model`'s config says about positions.

    Raises:
        UserError: the folder contains no config.json, or it describes neither a model of this family nor an export.
    """
    folder = base_folder(arguments.model) or arguments.model
    values = _values(folder)
    rope, channels, positions = _exported(values, folder) if values.get("model_type") == GLM else _own(folder)
    console = Console()
    console.print(f"{describe_rope(rope)}; positions to {positions:,}; {channels} rotary channels in each head")
    console.print(_angles_table(rope, channels, positions))
    console.print(_engines_table(values, rope, positions))


def _own(folder: Path) -> tuple[dict[str, Any], int, int]:
    config = read_config(folder, family=family_of(folder)[0])
    print(f"{folder}: family {config.family} ({family_of(folder)[1]})")
    return config.rope_parameters, config.rotary_channels, config.seq_length


def _exported(values: dict[str, Any], folder: Path) -> tuple[dict[str, Any], int, int]:
    print(f"{folder}: transformers' Glm layout, as export writes it")
    try:
        rope, positions = dict(values["rope_parameters"]), int(values["max_position_embeddings"])
        channels = int(values["head_dim"] * rope["partial_rotary_factor"])
        rope = {**rope, "rope_theta": float(rope["rope_theta"]), "rope_type": str(rope["rope_type"])}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / _CONFIG} lacks what export writes ({type(error).__name__}: {error}). Export the model again."
        ) from None
    return rope, channels, positions


def _values(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no {_CONFIG}. Name the folder of a released, tuned or exported model.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a JSON object. Download the file again.")
    return values


def _angles_table(rope: dict[str, Any], channels: int, positions: int) -> Table:
    table = _table("positions that stay distinct (angles of the fastest pair), and the largest angle error in radians")
    for column in ("positions", "float32 (here)", *(str(dtype).removeprefix("torch.") for dtype in HALF_DTYPES)):
        table.add_column(column, justify="right")
    for length in _lengths(positions):
        exact, _ = distinct_angles(rope, channels, length, torch.float32)
        halves = (distinct_angles(rope, channels, length, dtype) for dtype in HALF_DTYPES)
        table.add_row(f"{length:,}", f"{exact:,}", *(f"{count:,} ({error:.2g})" for count, error in halves))
    return table


def _engines_table(values: dict[str, Any], rope: dict[str, Any], positions: int) -> Table:
    table = _table("how other engines would read this config (from their sources, not run)")
    for column in ("", "reads", "so positions are", ""):
        table.add_column(column)
    for entry in served(values, rope, positions):
        verdict = "right" if entry.verdict == "right" else f"wrong: {entry.verdict}"
        table.add_row(entry.engine, describe_rope(entry.rope), verdict, entry.note)
    return table


def _lengths(positions: int) -> Iterator[int]:
    length = _SHORTEST
    while length < positions:
        yield length
        length *= 2
    yield positions


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")
