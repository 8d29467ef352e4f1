"""`export --format gguf` and `adapter-gguf`: write one file, which gets its final name once it is checked."""

from pathlib import Path

from glm2core.console import Notice
from glm2core.errors import UserError
from glm2core.export.gguf_check import check_adapter, check_network
from glm2core.export.gguf_file import Quantization, require_gguf, write_adapter, write_network
from glm2core.export.source import Source, refuse_existing
from glm2core.files import atomic_path

_SUFFIX = ".gguf"


def export_gguf(
    folder: Path, out: Path, *, quantization: Quantization = "f16", base: Path | None = None, notice: Notice = print
) -> None:
    """Write the model in `folder` (an adapter merged) with its tokenizer and template as one GGUF file.

    Args:
        folder: full weights, released or tuned, or a LoRA adapter.
        out: a file that does not exist yet.
        quantization: type of the matrices; norms and biases are fp32; with q4_0, embedding and output layer are q8_0.
        base: new place of an adapter's base; None = not moved.

    Raises:
        UserError: the package gguf is missing, `out` exists, the folder holds no model or a P-tuning prefix, or a check
            fails.
    """
    _require_place(out)
    source = Source.open(folder, base, notice=notice)
    with atomic_path(out) as partial:
        write_network(source, quantization, partial)
        check_network(source, partial, quantization, notice)


def export_adapter(folder: Path, out: Path, *, base: Path | None = None, notice: Notice = print) -> None:
    """Write only a LoRA adapter, for use with `--lora` and a GGUF file of its base.

    Raises:
        UserError: as for `export_gguf`, or `folder` holds full weights.
    """
    _require_place(out)
    source = Source.open(folder, base, notice=notice)
    with atomic_path(out) as partial:
        write_adapter(source, partial)
        assert source.updates is not None
        check_adapter(source.updates, source, partial, notice)


def _require_place(out: Path) -> None:
    require_gguf()
    refuse_existing(out)
    if out.suffix != _SUFFIX:
        raise UserError(f"{out} does not end in {_SUFFIX}. Name a file that does.")
