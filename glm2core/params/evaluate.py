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
        description="held-out rows answered for ROUGE and BLEU; 0 = none; auto = the base's advice, else 64, "
        "or 8 of a large network on a CPU",
    )
    base: Auto[bool] = Field(
        "auto",
        description="whether model.base, untuned, answers the same rows; auto = the base's advice, else true, but "
        "false above 1 billion parameters on a CPU",
    )
    batch_size: Count = Field(16, description="rows answered at once")
    max_new_tokens: Count = Field(128, description="longest answer, in tokens")


class GenerationParams(GenerationChoices):
    """The same, settled."""

    rows: NonNegative = 64
    base: bool = False


class RetrievalChoices(Section):
    """The long-context test."""

    tasks: list[RetrievalTask] = Field(
        ["lines"],
        description="what is asked: lines of a record, RULER's kinds in words of this project's own, one passkey, "
        "several keys in plain text; [] = nothing",
    )
    shared: bool = Field(
        False, description="true: all tasks are asked on the same contexts, each read once; false: each on its own"
    )
    lengths: Auto[Lengths] = Field(
        "auto",
        description="context lengths in tokens; time grows with the square; auto = the base's advice, else to "
        "8,192, of a large network to its positions on a GPU and to 1,024 on a CPU",
    )
    base_lengths: Auto[Lengths] = Field(
        "auto",
        description="lengths at which model.base, untuned, is asked the same cases; [] = not asked; auto = the "
        "base's advice, else those of lengths that it has positions for, on a CPU 512 of a large network",
    )
    contexts: Auto[Count] = Field(
        "auto",
        description="contexts at each length and task; auto = the base's advice, else 2, of a large network 4 "
        "on a GPU and 1 on a CPU",
    )
    questions: Auto[Count] = Field(
        "auto",
        description="questions on each context, spread over its depth; a multiple of depths; auto = the base's "
        "advice, else 25",
    )
    depths: Count = Field(5, description="rows of the length-by-depth grid")
    max_new_tokens: Count = Field(64, description="longest answer to a question, in tokens")
    files: list[FilePath] = Field([], description="LongEval *_lines.jsonl and RULER .jsonl files to answer as they are")
    seed: Seed = Field(1234, description="seed of the generated cases")

    @model_validator(mode="after")
    def _cells_are_equal(self) -> Self:
        if self.questions != AUTO and self.questions % self.depths:
            raise ValueError(f"questions ({self.questions}) must be a multiple of depths ({self.depths})")
        return self


class RetrievalParams(RetrievalChoices):
    """The same, settled."""

    lengths: Lengths = Field([512, 1024, 2048, 4096, 8192])
    base_lengths: Lengths = Field([])
    contexts: Count = 2
    questions: Count = 25


class EvaluateChoices(Section):
    """What is measured on the tuned model."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the weights; auto = bfloat16 where the device computes in it or above 1e9 parameters, "
        "float16 on any other GPU, else float32; float16 is for GPUs only",
    )
    threads: Auto[Threads] = Field(
        "auto", description="CPU threads; auto = all cores; another count gives other last bits"
    )
    batch_tokens: Count = Field(4096, description="tokens in a batch of the held-out loss")
    prefill_chunk: Count = Field(
        32768, description="longer contexts are read in chunks of so many tokens: less memory, 2 to 3 times slower"
    )
    generation: GenerationChoices = Field(GenerationChoices(), description="answers to held-out rows")
    general: FilePath | None = Field(
        None,
        description="file of rows of another kind: its first generation.rows are answered too, and the change of "
        "their loss from the base tells what was forgotten; null = none",
    )
    retrieval: RetrievalChoices = Field(RetrievalChoices(), description="long-context retrieval")

    @model_validator(mode="after")
    def _general_rows_are_answered(self) -> Self:
        if self.general is not None and self.generation.rows == 0:
            raise ValueError("general needs generation.rows above 0, as many of its rows are answered")
        return self


class EvaluateParams(EvaluateChoices):
    """The same, settled."""

    threads: Threads = 1
    generation: GenerationParams = GenerationParams()
    retrieval: RetrievalParams = RetrievalParams()
