"""The section of the train stage: `train`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from glm2core.params.launcher import Launcher
from glm2core.params.section import AUTO, Auto, Count, Epochs, Fraction, Positive, Section, Seed, Steps, Threads

LoraTarget = Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


class LoraParams(Section):
    """The adapter of the methods lora and qlora."""

    rank: Count = Field(8, description="rank of the update matrices; memory grows with it")
    alpha: Count = Field(32, description="the update is scaled by alpha / rank")
    rslora: bool = Field(False, description="true = the scale is alpha / sqrt(rank), which lets high ranks learn more")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the update matrices' input that is dropped; above 0, each step takes longer"
    )
    targets: list[LoraTarget] = Field(
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        min_length=1,
        description="linear layers of each block that get update matrices",
    )


class PrefixParams(Section):
    """The prefix of the method ptuning."""

    length: Count = Field(128, description="number of virtual tokens in front of every layer's keys and values")


# The value for auto before the rows are counted: recompute only as many blocks as needed to fit into memory.
FIT: Literal["fit"] = "fit"
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "muon"]
ScheduleName = Literal["linear", "cosine", "constant", "wsd"]


class CurriculumStage(Section):
    """A part of the training that uses only short rows."""

    until: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of the steps after which this stage ends")
    max_tokens: Count = Field(description="maximum number of tokens in a row during this stage")


class TrainChoices(Section):
    """Tuning."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the stage; auto = cuda if torch sees a GPU, else cpu"
    )
    launcher: Launcher = Field(
        "python",
        description="program that starts the stage, as in python, torchrun --nproc_per_node 2 or accelerate launch; "
        "docs/scaling.md lists the options",
    )
    method: Literal["full", "lora", "qlora", "ptuning"] = Field(
        "full",
        description="what is trained; full = every weight; lora = update matrices; qlora = update matrices on "
        "quantized weights; ptuning = a prefix in every layer",
    )
    quantization_bits: Auto[Literal[4, 8] | None] = Field(
        "auto",
        description="number of bits in each of the base's weights; 4 = nf4; 8 = LLM.int8; null = not quantized; auto = "
        "4 if method is qlora, else null; the methods full and lora take only null",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of the weights; auto on a GPU = bfloat16 if the GPU computes in it, else float16; auto on a "
        "CPU = bfloat16 above 1e9 parameters, or from 2e7 if the CPU computes in bfloat16, else float32; float16 works "
        "only on a GPU",
    )
    max_steps: Auto[Steps | None] = Field(
        "auto",
        description="number of optimizer steps; null = set by epochs; auto = the base's advice, else 500 (100 for a "
        "large network on a CPU)",
    )
    epochs: Auto[Epochs | None] = Field(
        "auto",
        description="number of passes over the training rows, which can be set instead of max_steps; null = set "
        "by max_steps; auto = the base's advice, else 2 for a large network on a GPU",
    )
    batch_tokens: Auto[Count] = Field(
        "auto",
        description="maximum number of tokens in a batch, including padding; a longer row is a batch of its own; "
        "memory grows with this number; auto = the base's advice, else 2048 (for a large network, 1024 on a GPU and "
        "512 on a CPU)",
    )
    gradient_accumulation_steps: Count = Field(1, description="number of batches per optimizer step")
    learning_rate: Auto[Positive] = Field(
        "auto",
        description="highest learning rate; auto = the base's advice, else the method's usual rate, which is 1e-5 for "
        "full (1e-3 from scratch), 1e-4 for lora, 2e-4 for qlora and 1e-2 for ptuning",
    )
    schedule: Auto[ScheduleName] = Field(
        "auto",
        description="how the learning rate changes after warm-up; wsd (warm-up, stable, decay) = constant, then "
        "falling linearly to 0; auto = the base's advice, else cosine",
    )
    decay_fraction: Auto[Fraction] = Field(
        "auto",
        description="share of the steps during which wsd lowers the learning rate; auto = the base's advice, else 0.6",
    )
    warmup_fraction: Auto[Fraction] = Field(
        "auto",
        description="share of the steps during which the learning rate rises from 0; auto = the base's advice, else "
        "0.03",
    )
    optimizer: Auto[Optimizer] = Field(
        "auto",
        description="optimizer; adafactor needs the least memory, and adamw_8bit needs less than adamw; muon is for "
        "small networks; auto = adafactor if memory is low, else the base's advice, else adamw",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1_000_000)] = Field(0.0, description="decoupled weight decay")
    bias_rate: Auto[Positive] = Field(
        "auto",
        description="factor by which the learning rate of biases is multiplied; above 1, it is for small networks "
        "with linear scaling; auto = the base's advice, else 1",
    )
    query_scale: Auto[Positive] = Field(
        "auto",
        description="factor by which all attention queries are multiplied in the saved weights; above 1, attention is "
        "sharper, which helps in contexts much longer than the training rows; only for method full; auto = the base's "
        "advice if model.rope scales positions, else 1",
    )
    max_grad_norm: Auto[Positive | None] = Field(
        "auto",
        description="gradients are clipped to this norm; null = no clipping; auto = null if memory is low, else "
        "the base's advice, else 1",
    )
    memory: Auto[Literal["normal", "low"]] = Field(
        "auto",
        description="low = weights are updated during the backward pass, so that only one gradient is held at a time; "
        "this is slower and needs method full and optimizer adafactor; auto = low if all weights of a large network "
        "are trained, else normal",
    )
    gradient_checkpointing: Auto[bool] = Field(
        "auto",
        description="whether to recompute the blocks in the backward pass, which needs less memory but is about a "
        "third slower; auto = the base's advice, else recompute only as many blocks as needed to fit into memory",
    )
    position_stretch: Auto[bool] = Field(
        "auto",
        description="whether rows get gaps in their positions (PoSE), so that short rows cover rope.factor x rope.unit "
        "positions; auto = the base's advice, else false",
    )
    position_gaps: Literal["pose", "cream"] = Field(
        "pose",
        description="where position_stretch puts the gaps; pose = anywhere; cream = around the middle of a row, so "
        "that the row's head and tail lie at the ends of the range",
    )
    curriculum: Auto[list[CurriculumStage]] = Field(
        "auto",
        description="stages that use only short rows; after the last stage, all rows are used; [] = all rows from the "
        "start; auto = the base's advice, else []",
    )
    generated_rows: Auto[Fraction] = Field(
        "auto",
        description="share of the generated rows (formats lines and analysis) that are trained on; auto = the base's "
        "advice, else all of them if model.rope changes positions or the network is from scratch, else none",
    )
    logging_steps: Count = Field(10, description="number of steps between two points of the training curves")
    eval_steps: Count | None = Field(
        None, description="number of steps between validations; null = validate only at the start and the end"
    )
    save_steps: Auto[Count] = Field(
        "auto",
        description="number of steps between checkpoints, which hold the weights and the optimizer's state; auto = the "
        "base's advice, else 100 (20 for a large network on a CPU)",
    )
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints to keep")
    early_stopping: Count | None = Field(
        None, description="stop after this many validations without a better loss; needs eval_steps; null = never"
    )
    seed: Seed = Field(0, description="seed for initialization, batch order, dropout and position gaps")
    threads: Auto[Threads] = Field(
        "auto",
        description="number of CPU threads; auto = all cores; a different number changes the last bits of the results",
    )
    lora: LoraParams = Field(LoraParams(), description="settings for the methods lora and qlora")
    prefix: PrefixParams = Field(PrefixParams(), description="settings for the method ptuning")

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        """Check the values that are not `auto`; an `auto` agrees with all of them, because it is settled to fit."""
        self._require_bits_for_method()
        self._require_steps_or_epochs()
        if self.memory == "low":
            self._require_what_low_memory_needs()
        if self.curriculum != AUTO:
            ends = [stage.until for stage in self.curriculum]
            if ends != sorted(set(ends)):
                raise ValueError(
                    f"curriculum: each stage must end later than the stage before it; the stages end at {ends}"
                )
        self._require_room_for_decay()
        if self.method != "full" and self.query_scale not in (AUTO, 1):
            raise ValueError(
                f"query_scale {self.query_scale:g} changes the base's weights, but method {self.method} keeps them; "
                "set query_scale to auto or 1, or set method to full"
            )
        if self.early_stopping is not None and self.eval_steps is None:
            raise ValueError("early_stopping counts validations, so it needs eval_steps; set eval_steps as well")
        return self

    def _require_room_for_decay(self) -> None:
        if self.schedule != "wsd" or self.warmup_fraction == AUTO or self.decay_fraction == AUTO:
            return
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"schedule is wsd, but warmup_fraction {self.warmup_fraction} and decay_fraction {self.decay_fraction} "
                "add up to more than 1; lower one of them"
            )

    def _require_bits_for_method(self) -> None:
        allowed: dict[str, tuple[int | None, ...]] = {
            "full": (None,),
            "lora": (None,),
            "qlora": (4, 8),
            "ptuning": (None, 4, 8),
        }
        if self.quantization_bits not in (AUTO, *allowed[self.method]):
            bits = " or ".join(["auto", *("null" if b is None else str(b) for b in allowed[self.method])])
            got = "null" if self.quantization_bits is None else self.quantization_bits
            raise ValueError(f"method {self.method} needs quantization_bits to be {bits}, but it is {got}")

    def _require_steps_or_epochs(self) -> None:
        given = [length for length in (self.max_steps, self.epochs) if length not in (AUTO, None)]
        if len(given) == 2:
            raise ValueError(
                f"max_steps {self.max_steps} and epochs {self.epochs:g} both say when training ends; set one of them "
                "to null or auto"
            )
        if self.max_steps is None and self.epochs is None:
            raise ValueError("max_steps and epochs are both null, so training has no end; set one of them, or use auto")

    def _require_what_low_memory_needs(self) -> None:
        wrong = {
            "method": self.method != "full" and self.method,
            "optimizer": self.optimizer not in (AUTO, "adafactor") and self.optimizer,
            "gradient_accumulation_steps": self.gradient_accumulation_steps > 1 and self.gradient_accumulation_steps,
            "max_grad_norm": self.max_grad_norm != AUTO and self.max_grad_norm,
            "launcher": self.launcher != "python" and self.launcher,
        }
        found = ", ".join(f"{key}: {value}" for key, value in wrong.items() if value)
        if found:
            raise ValueError(
                "memory low needs method full, optimizer adafactor, gradient_accumulation_steps 1, "
                f"max_grad_norm null and launcher python, but it is combined with {found}"
            )


class TrainParams(TrainChoices):
    """`TrainChoices`, with a value in place of every `auto`; null means none."""

    quantization_bits: Literal[4, 8] | None = None
    max_steps: Steps | None = 500
    epochs: Epochs | None = None
    batch_tokens: Count = 2048
    learning_rate: Positive = 1e-5
    schedule: ScheduleName = "cosine"
    decay_fraction: Fraction = 0.6
    warmup_fraction: Fraction = 0.03
    optimizer: Optimizer = "adamw"
    bias_rate: Positive = 1.0
    query_scale: Positive = 1.0
    max_grad_norm: Positive | None = 1.0
    memory: Literal["normal", "low"] = "normal"
    gradient_checkpointing: bool | Literal["fit"] | Count = False  # type: ignore[assignment]  # a count is never written
    position_stretch: bool = False
    curriculum: list[CurriculumStage] = Field([])
    generated_rows: Fraction = 1.0
    save_steps: Count = 100
    threads: Threads = 1

    @property
    def steps(self) -> int:
        """Number of optimizer steps. If epochs is set, training/selection.py has already set max_steps."""
        assert self.max_steps is not None
        return self.max_steps

    @property
    def steps_in_half(self) -> bool:
        """Whether the weights may be float16.

        With method full and optimizer adafactor, the weights may not be float16, because RoundingAdafactor rounds them
        to bf16. The weights of an adapter are fp32.
        """
        return self.method != "full" or self.optimizer != "adafactor"

    def recomputed_blocks(self, layers: int) -> int:
        """How many blocks are recomputed, from the first block on. estimate/fit.py has replaced `fit` with a number."""
        assert self.gradient_checkpointing != FIT
        if isinstance(self.gradient_checkpointing, bool):
            return layers if self.gradient_checkpointing else 0
        return min(layers, int(self.gradient_checkpointing))
