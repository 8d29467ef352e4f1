"""Check the long-context claim with controls: ask the base, plain and scaled, and tuned models the same questions.

    make longcontext                                        what is missing, then docs/long-context.csv and .png
    python -m benchmarks.long_context --jobs 4              the same, four models at a time, one thread each
    python -m benchmarks.long_context --longeval FOLDER     also LongEval's own *_lines.jsonl files
    python -m benchmarks.long_context --ask lines           only the questions about `lines`, and later the others
    python -m benchmarks.long_context --table               only the table, CSV and picture of existing results

Every tuned model uses params.yaml's train section unchanged, with the same data, steps and position gaps. Only
`model.rope` and the seed differ. Models and answers are kept in .longcontext/, so an interrupted run continues. A model
or an answer is made again if its dependencies have changed, and the table leaves out outdated results.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.long_context_table import plot, print_table, table_rows, write_csv
from benchmarks.machine import print_machine
from glm2core.console import quiet_libraries
from glm2core.evaluation.case_files import read_cases
from glm2core.evaluation.cases import Case
from glm2core.evaluation.plots import length_name
from glm2core.evaluation.retrieval import ask
from glm2core.evaluation.scores import Answer, ruler_effective_length, score
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.files import sha256_file, source_fingerprint
from glm2core.model.adapters import load_tuned
from glm2core.model.loading import load_model
from glm2core.model.rope import RopeScaling, RotaryEmbedding
from glm2core.params import RopeChoices, Settled, load_params, read_base, settle
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer
from glm2core.training.session import open_run

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".longcontext"
TOKENIZED = Path("data/tokenized")
CSV, PICTURE = ROOT / "docs" / "long-context.csv", ROOT / "docs" / "long-context.png"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
FAR = (*LENGTHS, 32768)
CONTEXTS, QUESTIONS = 8, 25
# Each task has contexts of its own, as in RULER's files.
KINDS = ("niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt")
KINDS_CONTEXTS = 4
OTHERS = ("passkey", "multikey", "topics")
OTHER_LENGTHS = (1024, 8192, 16384)
GROUPS = ("lines", "kinds", "others")  # of questions


@dataclass(frozen=True)
class Control:
    """A model to ask.

    Args:
        seeds: the seeds with which the model is tuned; None = the untuned base.
        tables: precision in which the rotary tables are built.
        of: the control whose tuned model is used; None = tune a model for this control.
        kinds: whether to ask RULER's kinds, and the tasks in `OTHERS`, too.
        longeval: whether to ask the questions in LongEval's own files, too.
        train: keys of the train section whose values differ from the default's.
    """

    name: str
    rope: Literal["default", "linear", "ntk", "yarn"] = "default"
    factor: float = 1.0
    seeds: tuple[int | None, ...] = (None,)
    lengths: tuple[int, ...] = LENGTHS
    contexts: int = CONTEXTS
    tables: torch.dtype = torch.float32
    of: str | None = None
    kinds: bool = False
    longeval: bool = False
    train: dict[str, Any] = field(default_factory=dict)


YARN = "YaRN 16, tuned"  # as in the default
# The base's advice is for YaRN. With these values, a smaller base learned linear scaling (docs/long-context.md).
FOR_LINEAR = {"learning_rate": 3e-3, "schedule": "wsd", "bias_rate": 20.0, "query_scale": 1.0}
CONTROLS = (
    Control(YARN, "yarn", 16, seeds=(0, 1, 2), lengths=FAR, kinds=True, longeval=True),
    Control("YaRN 32, tuned", "yarn", 32, seeds=(0,), lengths=(*FAR, 65536), contexts=4),
    Control("YaRN 64, tuned", "yarn", 64, seeds=(0,), lengths=(*FAR, 65536, 131_072), contexts=4),
    Control("plain, tuned as long", seeds=(0,)),
    Control("linear 16, tuned", "linear", 16, seeds=(0,), lengths=FAR, train=FOR_LINEAR),
    Control("base, plain", kinds=True, longeval=True),
    Control("base, YaRN 16, not tuned", "yarn", 16, lengths=FAR),
    Control("base, linear 16, not tuned", "linear", 16),
    Control("base, NTK 16, not tuned", "ntk", 16),
    *(
        Control(f"{YARN}, {name} tables", "yarn", 16, seeds=(0,), tables=dtype, of=YARN, lengths=FAR, contexts=4)
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16))
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time; each uses one thread")
    parser.add_argument("--longeval", type=Path, help="the folder with LongEval's *_lines.jsonl files")
    parser.add_argument("--only", action="append", help="run only this control (may be repeated)")
    parser.add_argument("--ask", nargs="+", choices=GROUPS, default=GROUPS, help="groups of questions (all)")
    parser.add_argument("--table", action="store_true", help="ask no questions, and show only existing results")
    parser.add_argument("--one", nargs=2, metavar=("CONTROL", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = sorted(arguments.longeval.glob("*_lines.jsonl")) if arguments.longeval else []
    if arguments.one:
        name, seed = arguments.one
        _answer(_control(name), None if seed == "None" else int(seed), arguments.ask, files)
        return
    print_machine()
    chosen = [control for control in CONTROLS if not arguments.only or control.name in arguments.only]
    if not arguments.table:
        subprocess.run(["dvc", "repro", "tokenize"], cwd=ROOT, check=True)
        first = [(c, seed) for c in chosen for seed in c.seeds if c.of is None]
        then = [(c, seed) for c in chosen for seed in c.seeds if c.of is not None]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for pairs in (first, then):  # one list at a time: the second uses models of the first
                list(pool.map(lambda pair: _in_a_process(pair[0], pair[1], arguments.ask, arguments.longeval), pairs))
    answers = {
        control.name: [some for seed in control.seeds if (some := read_answers(control, seed))] for control in chosen
    }
    rows = list(table_rows(answers))
    print_table(rows)
    for control in (control for control in chosen if control.kinds):
        by_kind = [a for some in answers[control.name] for a in some if a.length and a.task not in OTHERS]
        if by_kind:
            reached = ruler_effective_length(by_kind)
            print(f"{control.name}: effective length by RULER's threshold, over lines and kinds: {reached:,} tokens")
    if rows and not arguments.only:
        write_csv(rows, CSV)
        plot(rows, PICTURE)


def _in_a_process(control: Control, seed: int | None, groups: Sequence[str], longeval: Path | None) -> None:
    """Run a control in a separate process, so that one model's memory is freed before the next model starts."""
    command = [sys.executable, "-m", "benchmarks.long_context", "--one", control.name, str(seed), "--ask", *groups]
    command += ["--longeval", str(longeval)] if longeval else []
    folder = _folder(control, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("wb") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{control.name}, seed {seed}: failed, see {folder / 'log.txt'}")
    print(f"{control.name}, seed {seed}: {_summary(read_answers(control, seed))}", flush=True)


def _answer(control: Control, seed: int | None, groups: Sequence[str], files: list[Path]) -> None:
    """Tune the model if the control asks for it, ask the questions, and save the answers; existing results stay."""
    quiet_libraries()
    torch.set_num_threads(1)
    params = settled_params()
    if seed is not None and control.of is None:
        _once(_folder(control, seed) / "model", _model_key(control, seed), lambda folder: _tune(control, seed, folder))
    questions = generated_questions(control, params)
    for group, generated in questions.items():
        if group in groups:
            asked, key = _answers_file(control, seed, group), _answers_key(control, seed, group)
            _once(asked, key, partial(_ask, control, seed, generated, []))
    if control.longeval and files:
        none, cases = replace(questions["lines"], tasks=[]), [case for file in files for case in read_cases(file)]
        asked = _folder(control, seed) / "longeval.jsonl"
        _once(asked, _longeval_key(control, seed, files), partial(_ask, control, seed, none, cases))


def settled_params() -> Settled:
    """Return params.yaml with settled values for its base on a CPU."""
    params = load_params(ROOT / "params.yaml")
    return settle(params, read_base(_base()), "cpu")


def generated_questions(control: Control, params: Settled) -> dict[str, GeneratedCases]:
    """Return a control's questions by group, without those in LongEval's files."""
    depths, seed = params.evaluate.retrieval.depths, params.evaluate.retrieval.seed
    lines = GeneratedCases(["lines"], control.lengths, control.contexts, QUESTIONS, depths, seed)
    if not control.kinds:
        return {"lines": lines}
    return {
        "lines": lines,
        "kinds": GeneratedCases(KINDS, control.lengths, KINDS_CONTEXTS, QUESTIONS, depths, seed),
        "others": GeneratedCases(OTHERS, OTHER_LENGTHS, KINDS_CONTEXTS, QUESTIONS, depths, seed),
    }


def _once(path: Path, key: str, make: Callable[[Path], None]) -> None:
    """Make a file or folder unless it exists for this key. An unfinished file or folder never looks complete."""
    if _key(path) == key:
        return
    _key_file(path).unlink(missing_ok=True)
    make(path)
    _key_file(path).write_text(key)


def _key(path: Path) -> str:
    """Return the key for which a file or folder was made; empty if it is missing or unfinished."""
    return _key_file(path).read_text() if _key_file(path).is_file() else ""


def _key_file(path: Path) -> Path:
    return path.with_name(path.name + ".key")


def _ask(control: Control, seed: int | None, generated: GeneratedCases, cases: list[Case], path: Path) -> None:
    model, chat_format = _model(control, seed), ChatFormat(SpTokenizer.load(_base()), "chatglm2")
    params = settled_params().evaluate
    with path.open("w", encoding="utf-8") as file:
        ask(
            model,
            chat_format,
            generated,
            cases,
            prefill_chunk=params.prefill_chunk,
            max_new_tokens=params.retrieval.max_new_tokens,
            file=file,
        )


def _tune(control: Control, seed: int, folder: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    rope = RopeChoices(type=control.rope, factor=control.factor, unit=params.model.rope.unit)
    model = params.model.model_copy(update={"rope": rope})
    train = params.train.model_copy(update={"seed": seed, "threads": 1, **control.train})
    with open_run(params.model_copy(update={"model": model, "train": train}), TOKENIZED) as (run, _):
        run.train()
        run.write_model(folder, TOKENIZED / "tokenizer")
        run.finish()


def _model(control: Control, seed: int | None) -> PreTrainedModel | PeftModel:
    model: Any
    if seed is None:
        rope = RopeScaling(control.rope, control.factor)
        model = load_model(_base(), dtype=torch.float32, rope=rope)
    else:
        model = load_tuned(_folder(_control(control.of or control.name), seed) / "model", dtype=torch.float32)
    if control.tables != torch.float32:
        model.transformer.rotary_pos_emb = HalfTables(
            model.config.rope_parameters, model.config.rotary_channels, control.tables
        )
    return model


def _base() -> Path:
    return ROOT / str(load_params(ROOT / "params.yaml").model.base)


class HalfTables(RotaryEmbedding):
    """Compute angles as the released code does: positions, frequencies and their product in half precision."""

    def __init__(self, rope: dict[str, Any], rotary_channels: int, dtype: torch.dtype) -> None:
        super().__init__(rope, rotary_channels)
        self._dtype = dtype

    @torch.no_grad()
    def angles(self, position_ids: Tensor) -> Tensor:
        frequencies = torch.tensor(self._frequencies[0], dtype=self._dtype)
        return (position_ids[..., None].to(self._dtype) * frequencies).float()


def _model_key(control: Control, seed: int | None) -> str:
    """Return a hash of what a model depends on: code, base and RoPE; if tuned, also seed, rows and train section."""
    rooms = ("data", "analysis", "text", "lines", "evaluation", "model", "training", "family.py")
    code = source_fingerprint(*(ROOT / "glm2core" / name for name in rooms))
    parts: list[Any] = [
        code,
        control.rope,
        control.factor,
        str(control.tables),
        sha256_file(_base() / "model.safetensors"),
    ]
    if seed is not None:
        convert = load_params(ROOT / "params.yaml").convert.model_dump(mode="json")
        params = settled_params().model_dump(mode="json")
        parts += [str(seed), control.train, convert, *(params[section] for section in ("tokenize", "model", "train"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _answers_key(control: Control, seed: int | None, group: str) -> str:
    """Return a key made of the model's key and a group's questions."""
    questions = asdict(generated_questions(control, settled_params())[group])
    return hashlib.sha256(json.dumps([_model_key(control, seed), questions]).encode()).hexdigest()


def _longeval_key(control: Control, seed: int | None, files: list[Path]) -> str:
    """Return two words. The model's key is first, because a table knows the model but not the files."""
    return f"{_model_key(control, seed)} {hashlib.sha256(''.join(map(sha256_file, files)).encode()).hexdigest()}"


def _control(name: str) -> Control:
    return next(control for control in CONTROLS if control.name == name)


def _folder(control: Control, seed: int | None) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in control.name.lower())
    return WORK / (slug if seed is None else f"{slug}-{seed}")


def _answers_file(control: Control, seed: int | None, group: str) -> Path:
    return _folder(control, seed) / f"{group}.jsonl"


def read_answers(control: Control, seed: int | None) -> list[Answer]:
    """Return the answers that belong to the current params and base."""
    names = {field.name for field in fields(Answer)}
    groups = generated_questions(control, settled_params())
    keys = {_answers_file(control, seed, group): _answers_key(control, seed, group) for group in groups}
    keys[_folder(control, seed) / "longeval.jsonl"] = _model_key(control, seed)
    current = [file for file, key in keys.items() if _key(file).startswith(key)]
    records = [json.loads(line) for file in current for line in file.read_text(encoding="utf-8").splitlines()]
    return [Answer(**{name: value for name, value in record.items() if name in names}) for record in records]


def _summary(answers: list[Answer]) -> str:
    places = dict.fromkeys((a.task, a.length) for a in answers)
    shares = {place: score([a for a in answers if (a.task, a.length) == place]).accuracy for place in places}
    return ", ".join(f"{length_name(length) if length else task} {shares[task, length]:.1%}" for task, length in places)


if __name__ == "__main__":
    main()
