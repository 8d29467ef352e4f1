"""The arguments of `python -m glm2core`; only the command that was chosen is imported."""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path

from glm2core.console import quiet_libraries
from glm2core.errors import UserError
from glm2core.files import require_utf8_name
from glm2core.process import prepare_process

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 an error in a sentence, 2 wrong usage, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    quiet_libraries()
    warnings.simplefilter("ignore", FutureWarning)  # libraries' words to each other
    try:
        for place in (value for value in vars(parsed).values() if isinstance(value, Path)):
            require_utf8_name(place)
        prepare_process()
        import_module(f"glm2core.cli.{parsed.command}").run(parsed)
    except UserError as error:
        print(f"{parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{parsed.command}: stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glm2core",
        description="Talk with a model, answer a file of rows, export for other tools, estimate memory, keep a model.",
        epilog="MODEL is a folder: models/tuned as the pipeline writes it (full weights or an adapter), or released "
        "weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_chat(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_retrieval(commands)
    _add_memory(commands)
    _add_promote(commands)
    _add_parameters(commands)
    return parser


def _add_chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser(
        "chat",
        help="talk with a model, answers appear as they are made",
        description="Talk with a model over several rounds. Type `clear` to forget them, `stop` (or Ctrl-D) to leave. "
        "Lines from a pipe are answered one by one.",
    )
    chat.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    chat.add_argument("--system", help="a system text in front of the first round")
    _add_generation(chat, max_new_tokens=1024)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    predict = commands.add_parser(
        "predict",
        help="answer the rows of a file into JSON lines",
        description="Answer the rows of a file: Alpaca, chatGLM, messages or ShareGPT; JSON, JSON lines, CSV or "
        "parquet, plain or packed by gzip, bzip2, xz or zstd. A killed run goes on where it stopped when the same "
        "command is given again.",
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    predict.add_argument(
        "file", type=Path, metavar="FILE", help="rows with questions; answers in them are not looked at"
    )
    predict.add_argument(
        "-o", "--output", type=Path, help="JSON lines to write (default: FILE.answers.jsonl beside FILE)"
    )
    predict.add_argument("--restart", action="store_true", help="forget the answers of a killed run")
    predict.add_argument(
        "--format",
        choices=["auto", "alpaca", "chatglm", "messages", "sharegpt"],
        default="auto",
        help="format of the rows (auto)",
    )
    predict.add_argument(
        "--encoding", choices=["gb18030"], help="of FILE; UTF-8, UTF-16 and UTF-32 are told from its bytes"
    )
    predict.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=THEIRS",
        help="a column's name in this file; may be repeated",
    )
    predict.add_argument("--batch-size", type=_count, default=8, help="rows answered at once (8)")
    _add_generation(predict, max_new_tokens=512)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="write a model that transformers, vLLM and others load without remote code",
        description="Write MODEL as transformers' GlmForCausalLM with safetensors, tokenizer.json and chat template; "
        "an adapter is merged into its full-precision base. The result is checked before it takes its name.",
    )
    export.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not exist")
    export.add_argument(
        "--dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        default="auto",
        help="of the exported weights; auto = as MODEL (or its base) is stored",
    )


def _add_retrieval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    retrieval = commands.add_parser(
        "retrieval",
        help="how far a model's context reaches: the evaluate stage's retrieval alone, on any folder",
        description="Ask MODEL the questions that `evaluate.retrieval` in params.yaml describes, and LongEval's own "
        "files, greedily and with rotary tables in fp32. Writes every answer, tables and pictures.",
    )
    retrieval.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    retrieval.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not exist")
    retrieval.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")
    retrieval.add_argument(
        "--lengths", type=_count, nargs="*", help="context lengths in tokens, in place of the params file's; none = []"
    )
    retrieval.add_argument("--contexts", type=_count, help="contexts at each length, in place of the params file's")
    retrieval.add_argument(
        "--file", type=Path, action="append", default=[], help="a LongEval *_lines.jsonl file; may be repeated"
    )
    retrieval.add_argument(
        "--rope-type", choices=["default", "linear", "ntk", "yarn"], help="scale MODEL's positions, untuned"
    )
    retrieval.add_argument("--rope-factor", type=float, default=1.0, help="context multiplier of --rope-type (1)")


def _add_memory(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    memory = commands.add_parser(
        "memory",
        help="memory and disk that the train stage will need, before it runs",
        description="Estimate, for the choices in params.yaml, the memory of weights, gradients, optimizer and "
        "activations on a CPU and on a GPU, of the cache when the model is used, and the disk.",
    )
    _add_params_file(memory)


def _add_promote(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    promote = commands.add_parser(
        "promote",
        help="keep the tuned model as a version in MLflow's model registry",
        description="Register models/tuned in MLflow's model registry with its headline figures and what it was made "
        "from. The weights are not copied: DVC keeps them, and the version says how to bring them back.",
    )
    promote.add_argument("--name", help="of the registered model (tracking.experiment of params.yaml)")


def _add_parameters(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parameters = commands.add_parser(
        "parameters",
        help="every key of params.yaml: type, allowed values, default, meaning",
        description="Print every key of params.yaml as Markdown tables, with the values that the file has now.",
    )
    parameters.add_argument(
        "--comments", action="store_true", help="print params.yaml itself, each key with its meaning as a comment"
    )
    _add_params_file(parameters)


def _add_params_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")


def _add_generation(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto = cuda where there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the weights; auto = bfloat16 where the device computes in it",
    )
    parser.add_argument(
        "--max-new-tokens", type=_count, default=max_new_tokens, help=f"longest answer ({max_new_tokens})"
    )
    parser.add_argument(
        "--temperature", type=_non_negative, default=0.0, help="0 = always the likeliest token; above, sampled (0)"
    )
    parser.add_argument(
        "--top-p", type=_fraction, default=0.8, help="sample from the likeliest tokens of this share (0.8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling (0)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def _non_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value
