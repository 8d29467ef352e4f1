"""`export`: writes a tuned or released model in another tool's format."""

import argparse
from pathlib import Path

from glm2core.errors import UserError
from glm2core.export.gguf import export_adapter, export_gguf
from glm2core.export.hf import export_hf
from glm2core.export.released import export_released
from glm2core.export.source import DTYPES

_AS_STORED = "auto"


def run(arguments: argparse.Namespace) -> None:
    model: Path = arguments.model
    out: Path = arguments.out
    _refuse_unused(arguments)
    dtype = DTYPES.get(arguments.dtype)
    match arguments.format:
        case "gguf":
            export_gguf(model, out, quantization=arguments.quantize or "f16", base=arguments.base)
            print(f"{out}: llama-server -m {out} and `ollama create` load it. See docs/export.md.")
        case "adapter-gguf":
            export_adapter(model, out, base=arguments.base)
            print(f"{out}: llama-server -m BASE.gguf --lora {out}, with BASE.gguf exported from the adapter's base.")
        case "released":
            missing = export_released(model, out, dtype=dtype, base=arguments.base)
            ready = f"add the files {missing}" if missing else "the base's *.py files are beside it"
            print(f"{out}: the released layout, for programs that run the original; {ready}. See docs/export.md.")
        case _:
            export_hf(model, out, dtype=dtype, base=arguments.base)
            print(
                f"{out}: AutoTokenizer and AutoModelForCausalLM load it as it is. See docs/export.md for other tools."
            )


def _refuse_unused(arguments: argparse.Namespace) -> None:
    if arguments.quantize and arguments.format != "gguf":
        raise UserError(
            f"--quantize is allowed only with --format gguf; --format {arguments.format} does not round weights."
        )
    if arguments.dtype != _AS_STORED and arguments.format.endswith("gguf"):
        raise UserError(f"--dtype does not apply to --format {arguments.format}. Choose its precision with --quantize.")
