"""Write the file of `export --format gguf` or `adapter-gguf`; the file is checked before it gets its final name."""

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
    """Write the model in `folder`, its tokenizer and its chat template to one GGUF file; an adapter is merged first.

    Args:
        folder: a folder with full weights (released or tuned) or with a LoRA adapter.
        out: the new file, which must not exist yet.
        quantization: the type in which matrices are stored. Norms and biases are always fp32. With q4_0, the embedding
            and the output layer are stored as q8_0.
        base: where an adapter's base is now; None = it was not moved.

    Raises:
        UserError: the package gguf is missing, `out` exists, `folder` holds no model, `folder` holds a P-tuning prefix,
            or a check fails.
    """
    _require_place(out)
    source = Source.open(folder, base, notice=notice)
    with atomic_path(out) as partial:
        write_network(source, quantization, partial)
        check_network(source, partial, quantization, notice)


def export_adapter(folder: Path, out: Path, *, base: Path | None = None, notice: Notice = print) -> None:
    """Write a LoRA adapter without its base, for use with llama.cpp's `--lora` and a GGUF file of the base.

    Raises:
        UserError: one of the errors of `export_gguf` occurs, or `folder` holds full weights.
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
        raise UserError(f"{out} does not end in {_SUFFIX}. Choose a name with this ending.")
