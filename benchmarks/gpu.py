"""The released shape on a GPU: tuning beside GlmForCausalLM with peft and Trainer, and reading a long context.

    python -m benchmarks.gpu                          all rows, as a table (some minutes; 26 GiB of disk)
    python -m benchmarks.gpu --only lora-2048         some of them
    python -m benchmarks.gpu --work /dev/shm          random weights are written there, and removed after

Each row is a process of its own on the same random weights and the same row of random ids. A step's time is the
fastest of those after the first; peak memory is what torch's allocator gave out, loading included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GlmForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.machine import print_machine
from benchmarks.train_data import write_released_weights
from benchmarks.train_large import fixed_row
from benchmarks.train_small import Figures, NoCheckpoints, padded
from glm2core.console import quiet_libraries
from glm2core.evaluation.retrieval import answer_questions, read_context
from glm2core.hardware import peak_memory_gib
from glm2core.model.convert_glm import glm_config, glm_state_dict
from glm2core.model.cost import Cost
from glm2core.model.loading import load_model
from glm2core.model.quantization import quantization_config
from glm2core.params import LoraParams, ModelParams, TrainParams
from glm2core.training.measure import matrix_rate
from glm2core.training.methods import prepare
from glm2core.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
MARK = "measured: "
DTYPE = torch.bfloat16
GLM_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
TRAINED = ("lora-8192", "qlora-8192", "lora-2048", "qlora-2048")
READ = ("read-8192", "read-32768")
QUESTIONS, QUESTION_TOKENS, NEW_TOKENS = 25, 20, 24


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        quiet_libraries()
        print(MARK + json.dumps(_measure(arguments.measure, arguments)))
        return
    print_machine()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        arguments.work = Path(folder)
        _in_a_process("weights", arguments)
        read = {name: _in_a_process(name, arguments) for name in READ if name in arguments.only}
        trained = {name: _beside(name, arguments) for name in TRAINED if name in arguments.only}
    print("\n| run | step s | tokens/s | peak GiB | MFU | Glm + peft + Trainer: step s | peak GiB | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (ours, theirs) in trained.items():
        print(
            f"| {name} | {ours['step']:.3f} | {ours['tokens'] / ours['step']:,.0f} | {ours['peak_gib']:.1f} "
            f"| {ours['mfu']:.0%} | {theirs['step']:.3f} | {theirs['peak_gib']:.1f} "
            f"| {theirs['step'] / ours['step']:.2f} |"
        )
    print(f"\n| context read, {QUESTIONS} questions | read s | answered s | peak GiB |\n|---|---|---|---|")
    for name, found in read.items():
        print(f"| {name} | {found['read']:.1f} | {found['answered']:.1f} | {found['peak_gib']:.1f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*TRAINED, *READ], default=[*TRAINED, *READ])
    parser.add_argument("--preset", default="chatglm2-6b", help="shape of the network")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--work", type=Path, help="folder for the weights; default: the system's temporary one")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _beside(name: str, arguments: argparse.Namespace) -> tuple[Figures, Figures]:
    return _in_a_process(name, arguments), _in_a_process(f"glm-{name}", arguments)


def _in_a_process(name: str, arguments: argparse.Namespace) -> Figures:
    """Peaks and kernel caches are that process's alone."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name, "--work", str(arguments.work)]
    command += ["--preset", arguments.preset, "--device", arguments.device, "--steps", str(arguments.steps)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    found = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if done.returncode or found is None:
        sys.exit(f"{done.stdout}\nbenchmarks.gpu: {name} failed")
    print(f"{name}: {found.removeprefix(MARK)}, the process {time.perf_counter() - started:.0f} s", flush=True)
    figures: Figures = json.loads(found.removeprefix(MARK))
    return figures


def _measure(name: str, arguments: argparse.Namespace) -> Figures:
    device, weights, glm = torch.device(arguments.device), arguments.work / "weights", arguments.work / "glm"
    if name == "weights":
        write_released_weights(weights, arguments.preset, device)
        _write_glm(weights, glm)
        return {}
    kind, _, count = name.rpartition("-")
    tokens = int(count)
    if kind == "read":
        return _read(weights, device, tokens)
    if kind.startswith("glm-"):
        return _glm_trainer(glm, kind.removeprefix("glm-"), device, tokens, arguments.steps)
    return _ours(weights, arguments.work, kind, device, tokens, arguments.steps)


def _ours(weights: Path, work: Path, method: str, device: torch.device, tokens: int, steps: int) -> Figures:
    """The train stage's own path on one row of `tokens`."""
    params = TrainParams.model_validate(
        {
            "method": method,
            "quantization_bits": 4 if method == "qlora" else None,
            "device": device.type,
            "dtype": "bfloat16",
            "optimizer": "adamw",
            "batch_tokens": tokens,
            "gradient_checkpointing": True,
            "max_steps": steps,
            "logging_steps": 1,
            "learning_rate": 1e-4,
        }
    )
    prepared = prepare(
        ModelParams(base=str(weights), family="chatglm2"),
        params,
        vocab_size=0,
        dtype=DTYPE,
        device=device,
        work_folder=work,
    )
    checkpoints, rows = NoCheckpoints(work / "run"), fixed_row(tokens)
    with checkpoints.locked():
        outcome = Run(prepared, params, rows, rows, dtype=DTYPE, device=device, checkpoints=checkpoints).train()
    step = min(tokens / rate for _, rate in outcome.progress.curve("tokens_per_second")[1:])
    cost = Cost(prepared.network.config, backward_factor=1)
    supervised = tokens - tokens * 3 // 5
    operations = cost.operations(torch.tensor([tokens]), supervised)
    return {
        "step": step,
        "tokens": float(tokens),
        "mfu": operations / step / matrix_rate(DTYPE, device),
        "peak_gib": peak_memory_gib(device),
    }


def _glm_trainer(weights: Path, method: str, device: torch.device, tokens: int, steps: int) -> Figures:
    """transformers' Glm of the same weights with peft's LoRA of the same rank under Trainer."""
    lora = LoraParams()
    quantized = {"quantization_config": quantization_config(4, DTYPE)} if method == "qlora" else {}
    model: Any = GlmForCausalLM.from_pretrained(weights, dtype=DTYPE, device_map=device, **quantized)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=GLM_TARGETS
    )
    model = get_peft_model(model, adapter)
    timer = _StepTimer(device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=1e-4,
            bf16=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=device.type == "cpu",
        )
        rows = fixed_row(tokens)
        trainer = Trainer(
            model, arguments, train_dataset=[rows.row(0)] * steps, data_collator=padded, callbacks=[timer]
        )
        trainer.train()
    return {"step": min(timer.seconds[1:]), "peak_gib": peak_memory_gib(device)}


class _StepTimer(TrainerCallback):
    """Seconds of each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self._started)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _read(weights: Path, device: torch.device, tokens: int) -> Figures:
    """A context read once in one chunk, and all its questions answered."""
    model = load_model(weights, dtype=DTYPE, device=device, family="chatglm2")
    ids = torch.randint(3, 1000, (tokens,)).tolist()
    questions = [torch.randint(3, 1000, (QUESTION_TOKENS,)).tolist() for _ in range(QUESTIONS)]
    read_context(model, ids[:512], 512)  # kernels are chosen at the first call
    timer = _StepTimer(device)
    timer.on_step_begin()
    context = read_context(model, ids, tokens)
    timer.on_step_end()
    timer.on_step_begin()
    answer_questions(context, questions, NEW_TOKENS, frozenset())
    timer.on_step_end()
    return {"read": timer.seconds[0], "answered": timer.seconds[1], "peak_gib": peak_memory_gib(device)}


def _write_glm(weights: Path, folder: Path) -> None:
    model = load_model(weights, dtype=DTYPE, family="chatglm2")
    with torch.device("meta"):
        glm = GlmForCausalLM(glm_config(model.config)).to(DTYPE)
    glm.load_state_dict(glm_state_dict(model.state_dict(), model.config), assign=True)
    glm.save_pretrained(folder)


if __name__ == "__main__":
    main()
