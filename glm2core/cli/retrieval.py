"""`python -m glm2core retrieval`: how far a model's context reaches, without training anything."""

import argparse
import json
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from glm2core.cli.folders import read_wording
from glm2core.errors import UserError
from glm2core.evaluation.report import RETRIEVAL_PREDICTIONS, report_retrieval
from glm2core.evaluation.retrieval import PromptFormat
from glm2core.evaluation.run import ask, finished_parts
from glm2core.evaluation.tasks import read_longeval
from glm2core.files import atomic_path, write_json
from glm2core.model.adapters import load_tuned
from glm2core.model.checkpoint import load_model
from glm2core.model.hardware import choose_device, choose_dtype, set_threads
from glm2core.params import ModelParams, Record, TrainParams, load_params, read_base, read_record, settle

METRICS = "metrics.json"


def run(arguments: argparse.Namespace) -> None:
    """Ask `arguments.model` what `evaluate.retrieval` in the params file asks, and write what evaluate writes.

    Raises:
        UserError: OUT exists, no model in the folder, a rope that can't be added, or a file that is not LongEval's.
    """
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already. Name another folder, or remove it.")
    choices = load_params(arguments.params)
    device = choose_device(choices.evaluate.device, key="evaluate.device")
    record = read_record(arguments.model) or _record_of(arguments.model)
    params = settle(choices, record.base, "cuda" if device.type == "cuda" else "cpu", record).evaluate
    settings = params.retrieval.model_copy(
        update={name: value for name in ("lengths", "contexts") if (value := getattr(arguments, name)) is not None}
    )
    cases = [case for file in arguments.file for case in read_longeval(file)]
    wording = read_wording(arguments.model)
    set_threads(params.threads)
    dtype = choose_dtype(params.dtype, device)
    if arguments.rope_type is None:
        model = cast(PreTrainedModel, load_tuned(arguments.model, dtype=dtype, device=device))
    else:
        rope = {"rope_type": arguments.rope_type, "rope_factor": arguments.rope_factor}
        model = load_model(arguments.model, dtype=dtype, device=device, **rope)
    wording.require_rows(model.config.padded_vocab_size, arguments.model)
    finished = finished_parts(arguments.model, params, dtype, device, rope=[arguments.rope_type, arguments.rope_factor])
    prompt_format = PromptFormat(wording.tokenizer, wording.template, wording.pair_format)
    with atomic_path(arguments.out) as partial:
        partial.mkdir(parents=True)
        with (partial / RETRIEVAL_PREDICTIONS).open("w", encoding="utf-8") as file:
            answers = ask(model, prompt_format, params, settings, cases, file, finished.part)
        metrics = report_retrieval(answers, [], settings.depths, partial)
        write_json(partial / METRICS, metrics)
    finished.remove()
    print(json.dumps(metrics, indent=2))
    print(f"every answer, tables and pictures: {arguments.out}")


def _record_of(model: Path) -> Record:
    """Of weights that were not tuned here: what their folder says."""
    return Record(model=ModelParams(base=str(model)), train=TrainParams(), base=read_base(model))
