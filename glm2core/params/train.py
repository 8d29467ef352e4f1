"""The section of the train stage: `train`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glm2core.params.section import Count, Fraction, NonNegative, Positive, Section


class LoraParams(Section):
    """The adapter of the methods lora and qlora."""

    rank: Count = Field(8, description="rank of the update matrices; memory grows with it")
    alpha: Count = Field(32, description="scale of the update: alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the input that is dropped before the update matrices"
    )
    targets: list[Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]] = Field(
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        min_length=1,
        description="linears of each block that are adapted",
    )


class PrefixParams(Section):
    """The prefix of the method ptuning."""

    length: Count = Field(128, description="virtual tokens in front of every layer's keys and values")


Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "muon"]


class CurriculumStage(Section):
    """A part of the steps that takes short rows only."""

    until: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of the steps at which this stage ends")
    max_tokens: Count = Field(description="only rows of at most so many tokens until then")


class TrainParams(Section):
    """Tuning."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    launcher: str = Field(
        "python", description="what starts the stage: python, torchrun --nproc_per_node 2, or accelerate launch"
    )
    method: Literal["full", "lora", "qlora", "ptuning"] = Field(
        "full", description="full: every weight; lora: update matrices; qlora: the same on quantized weights; "
        "ptuning: a prefix in every layer"
    )  # fmt: skip
    quantization_bits: Literal[4, 8] | None = Field(
        None, description="of the base's weights: 4 = nf4, 8 = LLM.int8; null = not quantized, with qlora 4; full and "
        "lora take null only"
    )  # fmt: skip
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the weights; auto = bfloat16 where the device computes in it or above 1e9 parameters, "
        "else float32",
    )
    max_steps: Count = Field(500, description="optimizer steps")
    batch_tokens: Count = Field(
        2048, description="tokens in a batch, padding included; a longer row goes alone; memory grows with it"
    )
    gradient_accumulation_steps: Count = Field(1, description="batches in one optimizer step")
    learning_rate: Positive | None = Field(
        None, description="null = the method's default: full 1e-5 on trained weights and 1e-3 from scratch, lora 1e-4, "
        "qlora 2e-4, ptuning 1e-2"
    )  # fmt: skip
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "cosine", description="learning rate after warm-up; wsd (warm-up, stable, decay): constant, then linear to 0"
    )
    decay_fraction: Fraction = Field(0.6, description="share of the steps that lower the learning rate, for wsd")
    warmup_fraction: Fraction = Field(0.03, description="share of the steps that raise the learning rate from 0")
    optimizer: Optimizer = Field(
        "adamw", description="adafactor needs the least memory, adamw_8bit less than adamw; muon is for small networks"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    bias_rate: Positive = Field(
        1.0, description="biases learn so many times as fast as all else: for small networks after a change of RoPE"
    )  # fmt: skip
    max_grad_norm: Positive | None = Field(1.0, description="gradients are clipped to this norm; null = not clipped")
    memory: Literal["normal", "low"] = Field(
        "normal", description="low: weights are updated inside backward, one gradient alive at a time; slower, and for "
        "method full with optimizer adafactor only"
    )  # fmt: skip
    gradient_checkpointing: bool | None = Field(
        None, description="recompute the blocks in backward: less memory, about a third slower; null = with memory low"
    )
    position_stretch: bool = Field(
        False, description="PoSE: gaps in the positions, so that short rows cover rope.factor x rope.unit"
    )
    curriculum: list[CurriculumStage] = Field(
        [], description="short rows first; after the last stage, all rows; [] = all at once"
    )
    logging_steps: Count = Field(10, description="steps between points of the curves")
    eval_steps: Count | None = Field(None, description="steps between validations; null = only first and last")
    save_steps: Count = Field(100, description="steps between checkpoints; each costs a write of weights and optimizer")
    keep_checkpoints: Count = Field(2, description="newest checkpoints kept on the disk")
    early_stopping: Count | None = Field(
        None, description="stop after so many validations without a better loss; needs eval_steps; null = never"
    )
    seed: NonNegative = Field(0, description="of initialization, batch order, dropout and position gaps")
    threads: Count | None = Field(
        None, description="CPU threads; null = all cores; another count gives other last bits"
    )
    lora: LoraParams = Field(LoraParams(), description="for lora and qlora")
    prefix: PrefixParams = Field(PrefixParams(), description="for ptuning")

    @model_validator(mode="after")
    def _method_fits(self) -> "TrainParams":
        allowed: dict[str, tuple[int | None, ...]] = {
            "full": (None,), "lora": (None,), "qlora": (None, 4, 8), "ptuning": (None, 4, 8),
        }  # fmt: skip
        if self.quantization_bits not in allowed[self.method]:
            bits = " or ".join("null" if b is None else str(b) for b in allowed[self.method])
            got = "null" if self.quantization_bits is None else self.quantization_bits
            raise ValueError(f"method {self.method} goes with quantization_bits {bits}, got {got}")
        if self.memory == "low":
            self._low_memory_fits()
        ends = [stage.until for stage in self.curriculum]
        if ends != sorted(set(ends)):
            raise ValueError(f"curriculum: each stage must end later than the one before it; until is {ends}")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"schedule wsd: warmup_fraction {self.warmup_fraction} and decay_fraction {self.decay_fraction} are "
                "together more than all steps; lower one"
            )
        if self.early_stopping is not None and self.eval_steps is None:
            raise ValueError("early_stopping counts validations: set eval_steps too")
        return self

    @property
    def bits(self) -> Literal[4, 8] | None:
        """Bits of the quantized weights; plain `-S train.method=qlora` means 4."""
        return 4 if self.method == "qlora" and self.quantization_bits is None else self.quantization_bits

    @property
    def recomputes(self) -> bool:
        """Whether backward recomputes the blocks."""
        return self.memory == "low" if self.gradient_checkpointing is None else self.gradient_checkpointing

    def _low_memory_fits(self) -> None:
        wrong = {
            "method": self.method != "full" and self.method,
            "optimizer": self.optimizer != "adafactor" and self.optimizer,
            "gradient_accumulation_steps": self.gradient_accumulation_steps > 1 and self.gradient_accumulation_steps,
            "max_grad_norm": self.max_grad_norm,
            "launcher": self.launcher != "python" and self.launcher,
        }
        found = ", ".join(f"{key}: {value}" for key, value in wrong.items() if value)
        if found:
            raise ValueError(
                "memory low needs method full, optimizer adafactor, gradient_accumulation_steps 1, "
                f"max_grad_norm null and launcher python; got {found}"
            )
