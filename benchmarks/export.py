"""Compare GGUF files with their source model, with llama.cpp in this process (pip install '.[gguf]').

python -m benchmarks.export members                    log-probabilities of every family member, up to 20,000 tokens
python -m benchmarks.export retrieval models/tuned     paired answers of f32, q8_0 and q4_0 to the same questions
python -m benchmarks.export large                      time and memory for exporting the 6.24 B network to q4_0
python -m benchmarks.export large --preset small       the same on a small shape
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import print_machine
from benchmarks.train_data import anonymous_peak, write_released_weights
from glm2core.evaluation.scores import last_integer
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.export.forward import Asked, log_probabilities
from glm2core.export.gguf import export_gguf
from glm2core.export.gguf_file import write_network
from glm2core.export.llama_cpp import LlamaCpp
from glm2core.export.source import Source
from glm2core.model.config import ChatGLM2Config
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.model.presets import PRESETS
from glm2core.text.tokenizer import SpTokenizer

PLACES = (1, 130, 2_040, 2_060, 8_100, 20_000)
SMALL = {
    "num_layers": 3,
    "padded_vocab_size": 2048,
    "hidden_size": 128,
    "ffn_hidden_size": 352,
    "kv_channels": 32,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measure", required=True)
    commands.add_parser("members")
    retrieval = commands.add_parser("retrieval")
    retrieval.add_argument("model", type=Path, nargs="?", default=Path("models/tuned"))
    retrieval.add_argument("--length", type=int, default=8192)
    retrieval.add_argument("--contexts", type=int, default=8)
    retrieval.add_argument("--questions", type=int, default=50, help="number of questions about each context")
    large = commands.add_parser("large")
    large.add_argument("--preset", default="chatglm2-6b")
    large.add_argument("--layers", type=int, default=0, help="number of blocks; 0 = the preset's number")
    large.add_argument("--quantize", default="q4_0")
    large.add_argument("--tokenizer", type=Path, default=Path("models/base"))
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(dir=".") as work:
        {"members": members, "retrieval": paired, "large": exported}[arguments.measure](arguments, Path(work))


def members(_: argparse.Namespace, work: Path) -> None:
    """Print the largest log-probability difference, and how often the likeliest tokens agree if ours leads by 0.05."""
    print(f"{'member':<20}{'file':<6}{'to token':>10}{'largest':>10}{'clear':>8}{'same':>6}")
    for member in (name for name in PRESETS if "6b" in name):
        folder = _small_member(work / member, member)
        source = Source.open(folder, notice=_silent)
        for quantization in ("f32", "f16"):
            file = work / f"{member}-{quantization}.gguf"
            write_network(source, quantization, file)
            _print_difference(member, quantization, source, file)


def _print_difference(member: str, quantization: str, source: Source, file: Path) -> None:
    places = [place for place in PLACES if place < source.config.seq_length]
    ids = torch.randint(300, 1200, (max(places),), generator=torch.Generator().manual_seed(0)).tolist()
    llama = LlamaCpp(file, context=len(ids) + 8)
    theirs = torch.stack([llama.log_probabilities(ids[:place], SMALL["padded_vocab_size"]) for place in places])
    [ours] = log_probabilities(source, [Asked(ids, [place - 1 for place in places])])
    best = ours.topk(2).values
    clear = best[:, 0] - best[:, 1] > 0.05
    same = (ours.argmax(-1) == theirs.argmax(-1))[clear]
    largest = float((ours - theirs).abs().max())
    counts = f"{int(clear.sum()):>8}{int(same.sum()):>6}"
    print(f"{member:<20}{quantization:<6}{max(places):>10,}{largest:>10.1e}{counts}", flush=True)


def paired(arguments: argparse.Namespace, work: Path) -> None:
    """Print the share of right answers of each file, and the questions that a file loses and gains compared to f32."""
    right: dict[str, list[bool]] = {}
    for quantization in ("f32", "q8_0", "q4_0"):
        source = Source.open(arguments.model, notice=_silent)
        file = work / f"{quantization}.gguf"
        write_network(source, quantization, file)
        llama = LlamaCpp(file, context=arguments.length + 64, exact=False)
        right[quantization] = _answers(llama, source, arguments)
        found, base = right[quantization], right["f32"]
        lost = sum(b and not f for f, b in zip(found, base, strict=True))
        won = sum(f and not b for f, b in zip(found, base, strict=True))
        size = file.stat().st_size / 2**20
        share = 100 * sum(found) / len(found)
        print(f"{quantization}: {size:.1f} MiB, {share:.1f}% of {len(found)} right, lost {lost}, won {won}", flush=True)


def _answers(llama: LlamaCpp, source: Source, arguments: argparse.Namespace) -> list[bool]:
    cases = GeneratedCases(["lines"], [arguments.length], arguments.contexts, arguments.questions, 5, 0)
    right = []
    for case in cases.cases(source.chat_format.count_tokens):
        for question in case.questions:
            prompt = [{"role": "user", "content": case.context + question.text}]
            text = llama.answer(source.chat_format.prompt_ids(prompt), 24)
            right.append(last_integer(text) == question.expected)
        print(f"  context {case.index}: {sum(right)} of {len(right)}", flush=True)
    return right


def exported(arguments: argparse.Namespace, work: Path) -> None:
    """Export and check random weights of a preset's shape; print seconds and peak memory, without mapped files."""
    weights = work / arguments.preset
    write_released_weights(weights, arguments.preset, layers=arguments.layers)
    SpTokenizer.load(arguments.tokenizer).save(weights, "chatglm2")
    out = work / "model.gguf"
    started = time.perf_counter()
    with anonymous_peak() as peak:
        export_gguf(weights, out, quantization=arguments.quantize)
    seconds, size = time.perf_counter() - started, out.stat().st_size / 2**30
    told = f"{seconds:.0f} s with its check, peak {peak[0]:.2f} GiB without file pages"
    print(f"{arguments.quantize}: {size:.2f} GiB in {told}")


def _small_member(folder: Path, member: str) -> Path:
    """Make random weights with a trained network's magnitude, and with the family member's range and scaling."""
    network = ChatGLM2ForCausalLM(ChatGLM2Config(**{**PRESETS[member], **SMALL}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    network.save_pretrained(folder)
    SpTokenizer.load(Path("models/base")).save(folder, network.config.family)
    return folder


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
