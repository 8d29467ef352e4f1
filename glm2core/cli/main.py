"""Parses the arguments of `python -m glm2core`, and imports only the module of the chosen command."""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path

from glm2core.console import quiet_libraries
from glm2core.files import require_utf8_name
from glm2core.process import prepare_process
from glm2core.sentences import sentence_of

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return 0 if it succeeded, 1 if an error message was printed, or 130 if it was interrupted."""
    parsed = _parser().parse_args(arguments)
    quiet_libraries()
    warnings.simplefilter("ignore", FutureWarning)  # meant for developers of libraries
    try:
        for place in (value for value in vars(parsed).values() if isinstance(value, Path)):
            require_utf8_name(place)
        prepare_process()
        import_module(f"glm2core.cli.{parsed.command}").run(parsed)
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        print(f"{parsed.command}: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{parsed.command}: stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glm2core",
        description="Chat with a model, answer a file of rows, serve or export a model, estimate memory, register a "
        "model, show a tokenized row or the last run's figures, or check the machine.",
        epilog="MODEL is the folder of a tuned model (such as models/tuned, with full weights or an adapter) or of "
        "released weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_chat(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_export(commands)
    _add_compare(commands)
    _add_retrieval(commands)
    _add_rope(commands)
    _add_memory(commands)
    _add_promote(commands)
    _add_parameters(commands)
    _add_show(commands)
    _add_figures(commands)
    _add_ui(commands)
    _add_doctor(commands)
    return parser


def _add_chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser(
        "chat",
        help="chat with a model; answers are streamed",
        description="Chat with a model over several rounds. Type `clear` to forget the rounds, `stop` (or Ctrl-D) to "
        "quit. Lines from a pipe are answered one by one.",
    )
    chat.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    chat.add_argument("--system", help="system message before the first round")
    _add_generation(chat, max_new_tokens=1024)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    predict = commands.add_parser(
        "predict",
        help="answer the rows of a file; write JSON lines",
        description="Answer the rows of a file. The rows may be in the Alpaca, chatGLM, messages or ShareGPT format. "
        "The file may be JSON, JSON lines, CSV or parquet, plain or compressed with gzip, bzip2, xz or zstd. To "
        "continue a killed run, give the same command again.",
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    predict.add_argument("file", type=Path, metavar="FILE", help="rows with questions; answers in them are ignored")
    predict.add_argument(
        "-o", "--output", type=Path, help="JSON lines file to write (default: FILE.answers.jsonl beside FILE)"
    )
    predict.add_argument("--restart", action="store_true", help="discard the answers of a killed run")
    predict.add_argument(
        "--format",
        choices=["auto", "alpaca", "chatglm", "messages", "sharegpt"],
        default="auto",
        help="format of the rows (auto)",
    )
    predict.add_argument(
        "--encoding", choices=["gb18030"], help="encoding of FILE; UTF-8, UTF-16 and UTF-32 are detected"
    )
    predict.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=THEIRS",
        help="read FILE's column THEIRS as the standard column NAME; may be repeated",
    )
    predict.add_argument("--batch-size", type=_count, default=8, help="number of rows that are answered at once (8)")
    _add_generation(predict, max_new_tokens=512)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="write a model in the format of other tools: transformers, vLLM, llama.cpp, Ollama",
        description="Write MODEL in another tool's format; an adapter is merged into its full-precision base. The "
        "result is checked before it gets its final name.",
    )
    export.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    export.add_argument("out", type=Path, metavar="OUT", help="folder or FILE.gguf to write; must not exist")
    _add_base(export)
    export.add_argument(
        "--format",
        choices=["hf", "gguf", "released", "adapter-gguf"],
        default="hf",
        help="hf (the default) = transformers' GlmForCausalLM, also for vLLM and SGLang; gguf = llama.cpp and Ollama; "
        "released = the layout of the released weights; adapter-gguf = a LoRA adapter alone, for llama.cpp",
    )
    export.add_argument(
        "--dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        default="auto",
        help="dtype of the weights in the formats hf and released; auto = the dtype stored in MODEL (or its base)",
    )
    export.add_argument(
        "--quantize", choices=["f32", "f16", "q8_0", "q4_0"], help="precision of the matrices in the format gguf (f16)"
    )


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP with OpenAI's chat protocol",
        description="Serve any MODEL, including a P-tuning prefix, at http://HOST:PORT/v1. The server returns chat "
        "completions, whole or streamed, one at a time, and uses MODEL's own template. There is no authentication.",
    )
    serve.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1, for this machine only)")
    serve.add_argument("--port", type=_port, default=8000, help="port to listen on; 0 = any free port (8000)")
    serve.add_argument(
        "--max-context",
        type=_count,
        help="maximum number of tokens in prompt and answer together (default: as many as MODEL has positions)",
    )
    _add_device(serve)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="check whether a server gives the same answers as the model",
        description="Send the same prompts to MODEL and to a server that uses OpenAI's protocol (serve, transformers "
        "serve, vLLM, SGLang, llama-server, Ollama), decode greedily, and print where the answers differ. Some prompts "
        "are longer than 2,048 tokens.",
    )
    compare.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    compare.add_argument("--url", required=True, help="address of the server up to /v1, as in http://127.0.0.1:8080/v1")
    compare.add_argument("--name", help="name of the model on the server (default: the only one there)")
    compare.add_argument(
        "--lengths",
        type=_count,
        nargs="*",
        default=[500, 1500, 2500, 6000],
        help="context lengths in tokens; those beyond MODEL's range are skipped (500 1500 2500 6000)",
    )
    compare.add_argument("--max-new-tokens", type=_count, default=32, help="maximum number of tokens in an answer (32)")
    _add_device(compare)


def _add_retrieval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    retrieval = commands.add_parser(
        "retrieval",
        help="test how much of its context a model can use, with the evaluate stage's retrieval questions",
        description="Ask MODEL the questions that `evaluate.retrieval` in params.yaml describes, and the questions in "
        "each --file. Decoding is greedy, and rotary tables are in fp32. All answers, tables and pictures are "
        "written to OUT.",
    )
    retrieval.add_argument("model", type=Path, metavar="MODEL", help="folder of weights or of an adapter")
    retrieval.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    _add_base(retrieval)
    retrieval.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")
    retrieval.add_argument(
        "--lengths",
        type=_count,
        nargs="*",
        help="context lengths in tokens, instead of those in the params file; if empty, no context is generated",
    )
    retrieval.add_argument(
        "--tasks",
        nargs="*",
        metavar="TASK",
        help="tasks to ask, instead of those in the params file; if empty, no task is asked",
    )
    retrieval.add_argument(
        "--contexts", type=_count, help="number of contexts per length, instead of the number in the params file"
    )
    retrieval.add_argument(
        "--file",
        type=Path,
        action="append",
        default=[],
        help="a LongEval file (*_lines.jsonl or *_topics.jsonl) or a RULER file (.jsonl); may be repeated",
    )
    retrieval.add_argument(
        "--only-write", action="store_true", help="write the questions as RULER's .jsonl files without asking the model"
    )
    retrieval.add_argument(
        "--rope-type", choices=["default", "linear", "ntk", "yarn"], help="scale MODEL's positions, without tuning"
    )
    retrieval.add_argument("--rope-factor", type=float, default=1.0, help="context multiplier for --rope-type (1)")


def _add_rope(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rope = commands.add_parser(
        "rope",
        help="show a model's RoPE, and whether other engines would apply the same RoPE",
        description="Print MODEL's family and RoPE scaling, how many positions stay distinct in half precision, and "
        "whether vLLM, SGLang and llama.cpp's converter would read MODEL's config right, with a wrong rotary base, or "
        "with plain RoPE.",
    )
    rope.add_argument("model", type=Path, metavar="MODEL", help="folder of weights, of an adapter, or of an export")


def _add_memory(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    memory = commands.add_parser(
        "memory",
        help="estimate the memory and disk space that the train stage will need",
        description="Estimate the memory that training with the settings in params.yaml needs for weights, gradients, "
        "optimizer and activations, on a CPU and on a GPU. Also estimate the memory for using the model (weights and "
        "cache), and the disk space.",
    )
    _add_params_file(memory)


def _add_promote(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    promote = commands.add_parser(
        "promote",
        help="register the tuned model in MLflow's model registry",
        description="Register models/tuned in MLflow's model registry, with its headline figures and its origin. The "
        "weights are not copied, because DVC keeps them. The registered version contains the command that restores "
        "them.",
    )
    promote.add_argument("--name", help="name of the registered model (default: tracking.experiment in params.yaml)")


def _add_parameters(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parameters = commands.add_parser(
        "parameters",
        help="list every key of params.yaml with its type, allowed values, default and meaning",
        description="Print every key of params.yaml as Markdown tables, with the file's current values.",
    )
    parameters.add_argument(
        "--comments", action="store_true", help="print params.yaml itself, with each key's meaning as a comment"
    )
    _add_params_file(parameters)


def _add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    show = commands.add_parser(
        "show",
        help="show one tokenized row: every token with its id, which tokens are supervised, and which were cut off",
        description="Print one row of a file in data/tokenized as the model sees it. Text that was cut off is read "
        "from data/converted, beside data/tokenized. Some rows of each source are also in reports/tokenize/rows.html.",
    )
    show.add_argument("file", type=Path, metavar="FILE", help="a parquet file in data/tokenized")
    show.add_argument("--row", type=int, required=True, metavar="N", help="row number, from 0")
    show.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="folder with tokenizer.model (default: tokenizer/ beside FILE)"
    )


def _add_figures(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    commands.add_parser(
        "figures",
        help="show the last run's results, before and after tuning",
        description="Print the headline figures in metrics/ for the base and for the tuned model: retrieval from long "
        "texts, and answers to held-out rows.",
    )


def _add_ui(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    ui = commands.add_parser(
        "ui",
        help="show all runs on MLflow's web pages",
        description="Start MLflow's web pages for the project's runs on a free port, and print the addresses to open.",
    )
    ui.add_argument("--port", type=int, help="port to listen on (default: the first free one from 5000)")


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser(
        "doctor",
        help="show this machine's properties, what params.yaml needs, and what will go wrong",
        description="Print this machine's CPU (with speed), memory, GPUs, disk space, packages, MLflow store and DVC "
        "cache; then the output of `memory`; then what is likely to fail and how to fix it. Include the output in bug "
        "reports.",
    )
    _add_params_file(doctor)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=Path,
        help="folder of the base; needed if an adapter's base was moved (the weights must be the same), or if MODEL "
        "contains only a released P-tuning prefix",
    )


def _add_params_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")


def _add_generation(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    _add_device(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=_count,
        default=max_new_tokens,
        help=f"maximum number of tokens in an answer ({max_new_tokens})",
    )
    parser.add_argument(
        "--temperature",
        type=_non_negative,
        default=0.0,
        help="0 = always the most likely token; above 0 = sampling (0)",
    )
    parser.add_argument(
        "--top-p",
        type=_fraction,
        default=0.8,
        help="sample from the most likely tokens with this total probability (0.8)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling (0)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    _add_base(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto = cuda if available")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="dtype of the weights; auto = chosen for the device and the network's size; float16 works only on GPUs",
    )


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text}")
    return value


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
