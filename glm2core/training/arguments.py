"""What transformers' Trainer is told."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from glm2core.params import TrainParams

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}


def training_arguments(
    params: TrainParams, *, learning_rate: float, output: Path, device: torch.device, half_products: bool
) -> TrainingArguments:
    """params.yaml's train section in Trainer's words.

    Args:
        half_products: fp32 weights are multiplied in bf16 (autocast).
    """
    return TrainingArguments(
        output_dir=str(output),
        max_steps=params.steps,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type=_SCHEDULES[params.schedule],
        lr_scheduler_kwargs=_schedule_settings(params),
        warmup_steps=round(params.warmup_fraction * params.steps),
        max_grad_norm=params.max_grad_norm or 0.0,
        seed=params.seed,
        use_cpu=device.type == "cpu",
        bf16=half_products,
        eval_strategy="steps" if params.eval_steps else "no",
        eval_steps=params.eval_steps,
        save_strategy="steps",
        save_steps=params.save_steps,
        # Every step is handed on; Progress decides what becomes a point.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
    )


def _schedule_settings(params: TrainParams) -> dict[str, Any] | None:
    if params.schedule != "wsd":
        return None
    return {"num_decay_steps": round(params.decay_fraction * params.steps), "decay_type": "linear"}
