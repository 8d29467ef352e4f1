"""params.yaml -> frozen typed sections. The only reader of that file; imports no torch.

Every stage calls `load_params` first, so that a wrong key, type, value or combination stops the
run in a second, with the key, the value, what is allowed, and the nearest name.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from glm2core.errors import UserError
from glm2core.params_messages import messages

PARAMS_FILE = Path("params.yaml")

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Strict and frozen: no unknown key, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class GeneratedLines(Section):
    """Long conversations in LongEval's `lines` wording: one record, many questions about it."""

    conversations: Count = Field(description="how many conversations to generate")
    lines: list[Count] = Field(min_length=1, description="lines in a record; a conversation takes one of these counts")
    questions: Count = Field(description="questions (rounds) asked about one record")
    repeats: Fraction = Field(0.0, description="share of conversations whose record names some lines twice")
    hard_negatives: Fraction = Field(0.0, description="share of conversations with small word pools (colliding keys)")
    seed: NonNegative = Field(0, description="seed of the generator")


class Source(Section):
    """One entry of `convert.sources`."""

    format: Literal["auto", "alpaca", "chatglm", "messages", "lines"] = Field(
        "auto", description="layout of the rows; auto detects it and says what it found"
    )
    path: str | None = Field(None, description="file or glob, against the project root; null for generated lines")
    columns: dict[str, str] = Field({}, description="standard column name -> its name in this file")
    limit: Count | None = Field(None, description="take at most so many rows; null = all")
    max_source_length: Count | None = Field(None, description="overrides tokenize.max_source_length for this source")
    max_target_length: Count | None = Field(None, description="overrides tokenize.max_target_length for this source")
    loss_on: Literal["last", "every"] | None = Field(None, description="overrides tokenize.loss_on for this source")
    held_out: bool = Field(True, description="false: every row is trained on, none is kept to validate or test")
    generate: GeneratedLines | None = Field(None, description="with format lines: what to generate")

    @model_validator(mode="after")
    def _path_or_generate(self) -> "Source":
        if (self.generate is not None) != (self.format == "lines"):
            raise ValueError("generate goes with format lines, and format lines needs generate")
        if (self.path is None) != (self.generate is not None):
            raise ValueError("needs a path (or, with format lines, generate instead of a path)")
        return self


class ConvertParams(Section):
    sources: list[Source] = Field(min_length=1, description="what to read, in order")
    validation_fraction: Fraction = Field(0.05, description="share of prompts held out to watch training")
    test_fraction: Fraction = Field(0.05, description="share of prompts held out for the evaluate stage")
    max_rejected_fraction: Fraction = Field(0.05, description="more rejected rows than this stops the stage")
    seed: NonNegative = Field(0, description="salt of the split's hash: another seed, other splits")

    @model_validator(mode="after")
    def _some_left_to_train_on(self) -> "ConvertParams":
        held_out = self.validation_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(f"validation_fraction + test_fraction must stay below 1, got {held_out:g}")
        return self


class TokenizeParams(Section):
    pair_format: Literal["glm2", "llama"] = Field("glm2", description="glm2: [gMASK] sop A B </s>; llama: <s> A B </s>")
    template: Literal["auto", "chatglm2", "chatglm3"] = Field(
        "auto", description="prompt wording; auto = chatglm3 where the base is one, else chatglm2's [Round n]"
    )
    loss_on: Literal["last", "every"] = Field("last", description="supervise the last answer, or every answer")
    truncation: Literal["rounds", "left", "right", "drop"] = Field("rounds", description="of prompts that are too long")
    max_source_length: Count = Field(300, description="tokens of [gMASK] sop and prompt")
    max_target_length: Count = Field(200, description="tokens of a response and its </s>")
    vocabulary_size: Annotated[int, Field(ge=300, le=64000)] = Field(
        2000, description="pieces of the tokenizer trained when model.base is null"
    )
    threads: Count | None = Field(None, description="tokenizer threads; null = all cores; never changes the result")


class RopeParams(Section):
    type: Literal["default", "linear", "ntk", "yarn"] | None = Field(
        None, description="how positions are scaled; null = as the checkpoint has it"
    )
    factor: Annotated[float, Field(ge=1)] = Field(1.0, description="context multiplier; 1 with type null or default")
    unit: Count = Field(2048, description="positions of the unscaled range that the factor multiplies")

    @model_validator(mode="after")
    def _factor_needs_a_type(self) -> "RopeParams":
        if self.type in (None, "default") and self.factor != 1:
            raise ValueError(
                f"factor {self.factor:g} has no effect with type {self.type or 'null'}: "
                "set type to linear, ntk or yarn, or factor to 1"
            )
        return self


Preset = Literal[
    "tiny", "small", "chatglm2-6b", "chatglm2-6b-32k", "codegeex2-6b", "chatglm3-6b", "chatglm3-6b-32k",
    "chatglm3-6b-128k",
]  # fmt: skip


class ModelParams(Section):
    base: str | None = Field(None, description="folder of released or tuned weights; null = from scratch by preset")
    preset: Preset = Field("tiny", description="shape of a network from scratch")
    family: Literal["auto", "chatglm2", "chatglm3"] = Field("auto", description="says what rope_ratio means")
    initialization: Literal["default", "retrieval"] = Field(
        "default", description="from scratch only: default, or one that makes small models learn retrieval"
    )
    rope: RopeParams = Field(RopeParams(), description="scaling of the rotary positions")

    @model_validator(mode="after")
    def _initialization_is_for_scratch(self) -> "ModelParams":
        if self.base is not None and self.initialization != "default":
            raise ValueError("initialization is for networks from scratch: set it to default, or base to null")
        return self


class LoraParams(Section):
    rank: Count = Field(8, description="rank of the update matrices")
    alpha: Count = Field(32, description="scale of the update: alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="dropout before the update matrices")
    targets: list[Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]] = Field(
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], min_length=1, description="adapted linears"
    )


class PrefixParams(Section):
    length: Count = Field(128, description="virtual tokens in front of every layer's keys and values")


Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "muon"]


class CurriculumStage(Section):
    """One entry of `train.curriculum`: short rows first."""

    until: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of the steps at which this stage ends")
    max_tokens: Count = Field(description="only rows of at most so many tokens until then")


class TrainParams(Section):
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    launcher: str = Field("python", description="command that starts the stage, e.g. torchrun --nproc_per_node 2")
    method: Literal["full", "lora", "qlora", "ptuning"] = Field("full", description="what is tuned")
    quantization_bits: Literal[4, 8] | None = Field(None, description="4 = nf4, 8 = LLM.int8; null = none; qlora: 4")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto = bfloat16 where computed in")
    max_steps: Count = Field(500, description="optimizer steps")
    batch_tokens: Count = Field(2048, description="tokens in a batch, padding included; a longer row goes alone")
    gradient_accumulation_steps: Count = Field(1, description="batches in one optimizer step")
    learning_rate: Positive | None = Field(None, description="null = the method's default")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="learning rate after warm-up")
    warmup_fraction: Fraction = Field(0.03, description="share of the steps that raise the learning rate from 0")
    optimizer: Optimizer = Field("adamw", description="adafactor saves memory; muon is for small networks")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    vector_rate: Positive = Field(1.0, description="biases and norms learn so many times as fast as matrices")
    max_grad_norm: Positive | None = Field(1.0, description="gradients are clipped to this norm; null = not")
    memory: Literal["normal", "low"] = Field("normal", description="low: updates inside backward, one gradient alive")
    gradient_checkpointing: bool = Field(False, description="recompute blocks in backward: less memory, a third slower")
    position_stretch: bool = Field(False, description="PoSE: gaps in the positions so that they cover factor x unit")
    curriculum: list[CurriculumStage] = Field([], description="short rows first; after the last stage, all rows")
    logging_steps: Count = Field(10, description="steps between points of the curves")
    eval_steps: Count | None = Field(None, description="steps between validations; null = only first and last")
    save_steps: Count = Field(100, description="steps between checkpoints")
    keep_checkpoints: Count = Field(2, description="newest checkpoints kept")
    early_stopping: Count | None = Field(None, description="stop after so many validations without a better loss")
    seed: NonNegative = Field(0, description="of initialization, batch order, dropout and position gaps")
    threads: Count | None = Field(None, description="CPU threads; null = all cores; another count, other last bits")
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
        if self.early_stopping is not None and self.eval_steps is None:
            raise ValueError("early_stopping counts validations: set eval_steps too")
        return self

    @property
    def bits(self) -> Literal[4, 8] | None:
        """Bits of the quantized weights; plain `-S train.method=qlora` means 4."""
        return 4 if self.method == "qlora" and self.quantization_bits is None else self.quantization_bits

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


class GenerationParams(Section):
    rows: NonNegative = Field(64, description="held-out rows answered for ROUGE and BLEU; 0 = none")
    batch_size: Count = Field(16, description="rows answered at once")
    max_new_tokens: Count = Field(128, description="longest answer, in tokens")


class RetrievalParams(Section):
    tasks: list[Literal["lines", "passkey", "multikey"]] = Field(["lines"], description="what is asked")
    lengths: list[Annotated[int, Field(ge=128)]] = Field(
        [512, 1024, 2048, 4096, 8192], description="context lengths in tokens"
    )
    base_lengths: list[Annotated[int, Field(ge=128)]] = Field(
        [], description="lengths at which model.base, untuned, is asked the same cases; [] = not asked"
    )
    contexts: Count = Field(2, description="contexts at each length")
    questions: Count = Field(10, description="questions on each context, spread over its depth")
    depths: Count = Field(5, description="rows of the length-by-depth grid")
    max_new_tokens: Count = Field(64, description="longest answer to a question, in tokens")
    files: list[str] = Field([], description="LongEval *_lines.jsonl files to answer as they are")
    seed: NonNegative = Field(1234, description="seed of the generated cases")

    @model_validator(mode="after")
    def _cells_are_equal(self) -> "RetrievalParams":
        if self.questions % self.depths:
            raise ValueError(f"questions ({self.questions}) must be a multiple of depths ({self.depths})")
        return self


class EvaluateParams(Section):
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the weights; auto as in train")
    threads: Count | None = Field(None, description="CPU threads; null = all cores; another count, other last bits")
    batch_tokens: Count = Field(4096, description="tokens in a batch of the held-out loss")
    prefill_chunk: Count = Field(32768, description="longer contexts are read in chunks: less memory, 2-3 times slower")
    generation: GenerationParams = Field(GenerationParams(), description="answers to held-out rows")
    retrieval: RetrievalParams = Field(RetrievalParams(), description="long-context retrieval")


class TrackingParams(Section):
    experiment: str = Field("glm2core", min_length=1, description="MLflow experiment")
    log_examples: bool = Field(True, description="false keeps users' texts out of MLflow")


class Params(Section):
    """All of params.yaml: one section per stage, the model's, and tracking's."""

    convert: ConvertParams
    tokenize: TokenizeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        if self.evaluate.retrieval.base_lengths and self.model.base is None:
            raise ValueError("evaluate.retrieval.base_lengths needs model.base: set it, or base_lengths to []")
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a params file.

    YAML 1.2, as DVC reads it: `1e-4` is a number (in YAML 1.1 it is a string).

    Raises:
        UserError: a sentence for each key that is wrong.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}. Run the stages from the project's folder.") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}, line {line}: {error.problem.split(' with value')[0]}. Keep one of the two.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {sentence}" for sentence in messages(error, Params))) from None


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, as `-S` and MLflow name them; lists stay values."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
