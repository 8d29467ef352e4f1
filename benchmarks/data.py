"""Measure convert and tokenize: speed against bare SentencePiece and the original's code, memory, and the stages' time.

    python -m benchmarks.data                     everything
    python -m benchmarks.data speed --rows 20000  one part, on fewer rows
    python -m benchmarks.data scale --scale-rows 1000000  both stages on a million rows: rows per second, memory, growth
    python -m benchmarks.data --files a.json      these Alpaca files instead of the embedded ones

The files' rows are repeated, and each row begins with its number, so that no row is a duplicate.
For a ratio, both sides are timed alternately in one run and the best time of each side counts, so
that other work on the machine affects both sides. Peak memory is what the kernel reports for each
child process.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from benchmarks.machine import print_machine
from glm2core.conversation import SPLITS
from glm2core.data.convert import convert_sources
from glm2core.data.converted import read_conversations
from glm2core.labels import IGNORED
from glm2core.params import ConvertParams, Source, TokenizeParams
from glm2core.text.encode import encode_converted
from glm2core.text.prompt import prompt_text
from glm2core.text.tokenizer import MODEL_FILE, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 8000
PADDED = 500
PART = 50_000  # rows of a parquet part
BARE, ORIGINAL, LEANEST = "bare SentencePiece", "original's way", "its leanest form"
PARAMS = """\
convert: {{sources: [{{path: {path}, format: alpaca}}]}}
tokenize: {{vocabulary_size: {vocabulary}}}
model: {{}}
train: {{}}
evaluate: {{}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="any of speed, memory, stages and scale; default: all but scale")
    parser.add_argument("--files", nargs="+", type=Path, default=sorted((ROOT / "data/raw").glob("alpaca_*.json")))
    parser.add_argument("--rows", type=int, default=104_000, help="number of rows in the part speed")
    parser.add_argument("--scale-rows", type=int, default=100_000, help="number of rows in the part scale")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    print_machine()
    rows = [row for file in arguments.files for row in json.loads(file.read_text(encoding="utf-8"))]
    parts = arguments.parts or ["speed", "memory", "stages"]
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in parts:
            speed(rows, arguments.rows, arguments.repeats, Path(folder))
        if "memory" in parts:
            memory(rows, Path(folder))
        if "stages" in parts:
            stages(arguments.files, Path(folder))
        if "scale" in parts:
            scale(rows, arguments.scale_rows, Path(folder))


def speed(rows: list[dict[str, str]], count: int, repeats: int, folder: Path) -> None:
    """Compare tokenize with bare SentencePiece, and both steps with the original's code and with its leanest form."""
    raw = write_rows(rows, count, folder / "raw.json")
    converted, tokenized = folder / "converted", folder / "tokenized"
    run_convert = functools.partial(convert_sources, convert_params(raw), converted)
    run_convert()
    texts = all_texts(converted)
    tokenizer = train_tokenizer(texts[: len(texts) // 20], VOCABULARY)
    tokenizer.save(folder / "tokenizer", "chatglm2")
    run_tokenize = functools.partial(
        encode_converted,
        converted,
        tokenized,
        tokenizer,
        "chatglm2",
        TokenizeParams(vocabulary_size=VOCABULARY, threads=os.cpu_count() or 1),
    )
    bare = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    cores = os.cpu_count() or 1
    measured = best_of(
        repeats,
        {
            BARE: lambda: bare.encode(texts, num_threads=cores),
            "tokenize": run_tokenize,
            "convert": run_convert,
            ORIGINAL: lambda: original_way(raw, folder, hf_encode(folder / "tokenizer"), with_datasets=True),
            LEANEST: lambda: original_way(raw, folder, tokenizer.encode, with_datasets=False),
        },
    )
    for name, (wall, cpu) in measured.items():
        print(f"{name:<22}{wall:8.2f} s{cpu:8.2f} s of CPU{count / wall:12,.0f} rows/s")
    for number, kind in enumerate(("wall", "CPU")):
        taken = {name: times[number] for name, times in measured.items()}
        both = taken["convert"] + taken["tokenize"]
        print(f"as ratios of {kind} time:")
        print(f"  tokenize against bare SentencePiece with {cores} threads: {taken[BARE] / taken['tokenize']:.2f}")
        print(f"  convert + tokenize against the original's way: {taken[ORIGINAL] / both:.1f}")
        print(f"  convert + tokenize against its leanest form: {taken[LEANEST] / both:.1f}")


def original_way(raw: Path, folder: Path, encode: Callable[[str], list[int]], *, with_datasets: bool) -> None:
    """Prepare the data as the original does: all rows in memory as dicts, then a map that encodes and pads lists.

    Args:
        with_datasets: whether the map is `datasets.Dataset.map`, as in the original; if False, it is a plain loop that
            keeps nothing.
    """
    lines = folder / "original.json"
    with lines.open("w", encoding="utf-8") as file:
        for row in json.loads(raw.read_text(encoding="utf-8")):
            entry = {"prompt": row["instruction"], "response": row["output"], "history": [row["input"]]}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    if with_datasets:
        import datasets

        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            loaded = datasets.load_dataset("json", data_files=str(lines), cache_dir=cache)["train"]
            loaded.map(lambda batch: padded_pairs(batch, encode), batched=True, remove_columns=loaded.column_names)
        return
    with lines.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            padded_pairs({name: [value] for name, value in row.items()}, encode)


def padded_pairs(batch: dict[str, list], encode: Callable[[str], list[int]]) -> dict[str, list]:
    """Preprocess a batch as the original does, with 500 ids and labels per row."""
    model_inputs: dict[str, list] = {"input_ids": [], "labels": []}
    for prompt, response, history in zip(batch["prompt"], batch["response"], batch["history"], strict=True):
        a = encode(f"[Round 1]\n\n问：{prompt}\n{history[0]}\n\n答：")[-298:]
        b = encode(response)[:199]
        input_ids = [0, 0, *a, *b, 2]
        labels = [IGNORED] * (len(a) + 2) + input_ids[len(a) + 2 :]
        padding = [0] * (PADDED - len(input_ids))
        input_ids = input_ids + padding
        labels = [token if token != 0 else IGNORED for token in labels + padding]
        model_inputs["input_ids"].append(input_ids)
        model_inputs["labels"].append(labels)
    return model_inputs


def hf_encode(folder: Path) -> Callable[[str], list[int]]:
    """Use transformers' SentencePiece class on the same model. Like the released class, it looks pieces up singly."""
    from transformers import SentencePieceBackend

    slow = SentencePieceBackend(
        vocab_file=str(folder / MODEL_FILE), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return functools.partial(slow.encode, add_special_tokens=False)


def memory(rows: list[dict[str, str]], folder: Path) -> None:
    """Measure the peak resident memory of the real stages at 50,000 and 500,000 rows."""
    peaks: dict[tuple[str, int], float] = {}
    for count in (50_000, 500_000):
        project = make_project(folder / str(count), write_rows(rows, count, folder / "many.json"))
        for stage in ("convert", "tokenize"):
            seconds, peaks[stage, count] = run_stage(stage, project)
            print(f"{stage}, {count:,} rows: {peaks[stage, count]:.0f} MiB, {seconds:.1f} s")
    for stage in ("convert", "tokenize"):
        growth = peaks[stage, 500_000] - peaks[stage, 50_000]
        print(f"{stage}: growth from 50,000 to 500,000 rows {growth:.0f} MiB")


def scale(rows: list[dict[str, str]], count: int, folder: Path) -> None:
    """Check that time grows linearly, with both stages on a tenth of the rows and on all rows, as parquet parts."""
    rates: dict[tuple[str, int], float] = {}
    for size in (count // 10, count):
        project = make_project(folder / f"scale-{size}", write_parts(rows, size, folder / f"parts-{size}"))
        for stage in ("convert", "tokenize"):
            seconds, peak = run_stage(stage, project)
            rates[stage, size] = size / seconds
            print(f"{stage}, {size:,} rows in parts: {peak:.0f} MiB, {seconds:.1f} s, {size / seconds:,.0f} rows/s")
    for stage in ("convert", "tokenize"):
        slower = rates[stage, count // 10] / rates[stage, count]
        print(f"{stage}: a row takes {slower:.2f} times as long at {count:,} rows as at a tenth of them")
    together = 1 / sum(1 / rates[stage, count] for stage in ("convert", "tokenize"))
    print(f"both stages: {together:,.0f} rows/s, {together * 86_400 / 1e6:,.0f} million rows a day")


def stages(files: list[Path], folder: Path) -> None:
    """Measure the wall time of the two stages on the given rows, including imports and tracking."""
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    project = make_project(folder / "stages", path)
    times = {stage: run_stage(stage, project)[0] for stage in ("convert", "tokenize")}
    print(f"stages on {len(rows):,} rows: {times}, together {sum(times.values()):.1f} s")


def run_stage(stage: str, project: Path) -> tuple[float, float]:
    """Run one stage in a separate process, and return its seconds and its peak memory in MiB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"], cwd=project, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed in {project}")
    return time.perf_counter() - started, peak_mib(usage)


def peak_mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def make_project(folder: Path, source: Path) -> Path:
    folder.mkdir()
    (folder / "params.yaml").write_text(PARAMS.format(path=source, vocabulary=VOCABULARY), encoding="utf-8")
    return folder


def write_rows(rows: list[dict[str, str]], count: int, path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            row = row | {"instruction": f"{number}: {row['instruction']}"}
            file.write(("[" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("]")
    return path


def write_parts(rows: list[dict[str, str]], count: int, folder: Path) -> Path:
    """Write the same rows as a distributed engine does, to a folder of parquet parts."""
    folder.mkdir()
    names = ("instruction", "input", "output")
    for start in range(0, count, PART):
        numbers = range(start, min(start + PART, count))
        part = [rows[number % len(rows)] for number in numbers]
        table = {name: [row[name] for row in part] for name in names}
        table["instruction"] = [f"{n}: {text}" for n, text in zip(numbers, table["instruction"], strict=True)]
        pq.write_table(pa.table(table), folder / f"part-{start // PART:05}.parquet")
    return folder


def convert_params(path: Path) -> ConvertParams:
    return ConvertParams(sources=[Source(path=str(path), format="alpaca")])


def all_texts(converted: Path) -> list[str]:
    """Return the texts that tokenize encodes: each prompt and each response."""
    texts = []
    for split in SPLITS:
        for row in read_conversations(converted / f"{split}.parquet"):
            texts += [prompt_text(row["messages"], "chatglm2"), row["messages"][-1]["content"]]
    return texts


def best_of(repeats: int, actions: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Return the wall and CPU seconds of each action: the minimum over `repeats` alternating rounds."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(repeats):
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            taken = time.perf_counter() - wall, time.process_time() - cpu
            known = best.get(name, taken)
            best[name] = min(taken[0], known[0]), min(taken[1], known[1])
    return best


if __name__ == "__main__":
    main()
