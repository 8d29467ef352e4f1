"""The section of the evaluate stage: `evaluate`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glm2core.params.section import (
    AUTO,
    Auto,
    ContextLength,
    Count,
    FilePath,
    NonNegative,
    RetrievalTask,
    Section,
    Seed,
    Threads,
)

Lengths = list[ContextLength]


class GenerationChoices(Section):
    """Answers to held-out rows."""

    rows: Auto[NonNegative] = Field(
        "auto",
        description="number of held-out rows to answer for ROUGE and BLEU; 0 = none; auto = the base's advice, else "
        "64, or 8 for a large network on a CPU",
    )
    base: Auto[bool] = Field(
        "auto",
        description="whether the untuned model.base answers the same rows; auto = the base's advice, else true, but "
        "false for more than 1 billion parameters on a CPU",
    )
    batch_size: Count = Field(16, description="rows answered at once")
    max_new_tokens: Count = Field(128, description="maximum tokens of an answer")


class GenerationParams(GenerationChoices):
    """`GenerationChoices` with every `auto` settled."""

    rows: NonNegative = 64
    base: bool = False


class RetrievalChoices(Section):
    """The long-context test."""

    tasks: list[RetrievalTask] = Field(
        ["lines"],
        description="what to ask: lines = lines of a record; RULER's kinds, in this project's own words; passkey = "
        "one passkey in plain text; multikey = one of several keys in plain text; [] = nothing",
    )
    shared: bool = Field(
        False,
        description="true: all tasks share their contexts, so that each context is read only once; false: each task "
        "has its own contexts",
    )
    lengths: Auto[Lengths] = Field(
        "auto",
        description="context lengths in tokens; time grows with their square; auto = the base's advice, else up to "
        "8,192; for a large network up to its positions on a GPU, up to 1,024 on a CPU",
    )
    base_lengths: Auto[Lengths] = Field(
        "auto",
        description="context lengths at which the untuned model.base is asked the same questions; [] = not asked; auto "
        "= the base's advice, else those of lengths that fit its positions, or only 512 for a large network on a CPU",
    )
    contexts: Auto[Count] = Field(
        "auto",
        description="contexts per length and task; auto = the base's advice, else 2; for a large network 4 on a GPU, "
        "1 on a CPU",
    )
    questions: Auto[Count] = Field(
        "auto",
        description="questions per context, spread over its depth; must be a multiple of depths; auto = the base's "
        "advice, else 25",
    )
    depths: Count = Field(5, description="number of depths in the length-by-depth grid")
    max_new_tokens: Count = Field(64, description="maximum tokens of an answer")
    files: list[FilePath] = Field(
        [], description="LongEval *_lines.jsonl and RULER .jsonl files, whose questions are asked unchanged"
    )
    seed: Seed = Field(1234, description="seed of the generated cases")

    @model_validator(mode="after")
    def _cells_are_equal(self) -> Self:
        if self.questions != AUTO and self.questions % self.depths:
            raise ValueError(f"questions ({self.questions}) must be a multiple of depths ({self.depths})")
        return self


class RetrievalParams(RetrievalChoices):
    """`RetrievalChoices` with every `auto` settled."""

    lengths: Lengths = Field([512, 1024, 2048, 4096, 8192])
    base_lengths: Lengths = Field([])
    contexts: Count = 2
    questions: Count = 25


class EvaluateChoices(Section):
    """Measurements on the tuned model."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda if torch sees a GPU, else cpu")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of the weights; auto = float32 below 2e7 parameters on a CPU, else bfloat16 if the device "
        "computes in it, else float16 on a GPU, else bfloat16 above 1e9 parameters, else float32; only GPUs take "
        "float16",
    )
    threads: Auto[Threads] = Field(
        "auto", description="CPU threads; auto = all cores; another count changes the last bits of results"
    )
    batch_tokens: Count = Field(4096, description="tokens in a batch when the held-out loss is measured")
    prefill_chunk: Count = Field(
        32768,
        description="contexts of more than N tokens are read in chunks of N tokens, which takes less memory but is 2 "
        "to 3 times slower",
    )
    generation: GenerationChoices = Field(GenerationChoices(), description="answers to held-out rows")
    general: FilePath | None = Field(
        None,
        description="file of rows of another kind; its first generation.rows rows are answered too, and how their loss "
        "differs from the base's shows what was forgotten; null = none",
    )
    retrieval: RetrievalChoices = Field(RetrievalChoices(), description="long-context retrieval")

    @model_validator(mode="after")
    def _general_rows_are_answered(self) -> Self:
        if self.general is not None and self.generation.rows == 0:
            raise ValueError("general needs generation.rows above 0, the number of rows of its file to answer")
        return self


class EvaluateParams(EvaluateChoices):
    """`EvaluateChoices` with every `auto` settled."""

    threads: Threads = 1
    generation: GenerationParams = GenerationParams()
    retrieval: RetrievalParams = RetrievalParams()
