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
        description="number of held-out rows to answer for ROUGE and BLEU; 0 = none; auto = the base's advice, else 64 "
        "(8 for a large network on a CPU)",
    )
    base: Auto[bool] = Field(
        "auto",
        description="whether the untuned model.base answers the same rows; auto = the base's advice, else true (false "
        "for a base with more than 1 billion parameters on a CPU)",
    )
    batch_size: Count = Field(16, description="number of rows that are answered at once")
    max_new_tokens: Count = Field(128, description="maximum number of tokens in an answer")


class GenerationParams(GenerationChoices):
    """`GenerationChoices`, with a value in place of every `auto`."""

    rows: NonNegative = 64
    base: bool = False


class RetrievalChoices(Section):
    """The long-context test."""

    tasks: Auto[list[RetrievalTask]] = Field(
        "auto",
        description="tasks of the test; lines = find lines of a record; RULER's names = RULER's tasks in this "
        "project's own words; topics = name the first of several topics; passkey = find one passkey in plain text; "
        "multikey = find one of several keys in plain text; [] = no task; auto = the base's advice, else [lines]",
    )
    shared: Auto[bool] = Field(
        "auto",
        description="true = all tasks ask about the same contexts, so that each context is read only once; false = "
        "each task has its own contexts; auto = the base's advice, else false",
    )
    lengths: Auto[Lengths] = Field(
        "auto",
        description="context lengths in tokens; time grows with the square of the length; auto = the base's advice, "
        "else lengths up to 8,192 (for a large network, up to its number of positions on a GPU, and up to 1,024 on a "
        "CPU)",
    )
    base_lengths: Auto[Lengths] = Field(
        "auto",
        description="context lengths at which the untuned model.base is asked the same questions; [] = the base is not "
        "asked; auto = the base's advice, else those entries of lengths that the base has positions for (at most 512 "
        "for a large network on a CPU)",
    )
    contexts: Auto[Count] = Field(
        "auto",
        description="number of contexts per length and task; auto = the base's advice, else 2 (for a large network, 4 "
        "on a GPU and 1 on a CPU)",
    )
    questions: Auto[Count] = Field(
        "auto",
        description="number of questions per context, spread over the depth of the context; must be a multiple of "
        "depths; auto = the base's advice, else 25",
    )
    depths: Count = Field(5, description="number of depths in the grid of accuracy by length and depth")
    max_new_tokens: Count = Field(64, description="maximum number of tokens in an answer")
    files: list[FilePath] = Field(
        [],
        description="files of LongEval (*_lines.jsonl, *_topics.jsonl) or RULER (.jsonl); their questions are asked "
        "unchanged",
    )
    seed: Seed = Field(1234, description="seed of the generated cases")

    @model_validator(mode="after")
    def _cells_are_equal(self) -> Self:
        if self.questions != AUTO and self.questions % self.depths:
            raise ValueError(f"questions ({self.questions}) must be a multiple of depths ({self.depths})")
        return self


class RetrievalParams(RetrievalChoices):
    """`RetrievalChoices`, with a value in place of every `auto`."""

    tasks: list[RetrievalTask] = Field(["lines"])
    shared: bool = False
    lengths: Lengths = Field([512, 1024, 2048, 4096, 8192])
    base_lengths: Lengths = Field([])
    contexts: Count = 2
    questions: Count = 25


class EvaluateChoices(Section):
    """Measurements on the tuned model."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the stage; auto = cuda if torch sees a GPU, else cpu"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of the weights; auto on a GPU = bfloat16 if the GPU computes in it, else float16; auto on a "
        "CPU = bfloat16 above 1e9 parameters, or from 2e7 if the CPU computes in bfloat16, else float32; float16 works "
        "only on a GPU",
    )
    threads: Auto[Threads] = Field(
        "auto",
        description="number of CPU threads; auto = all cores; a different number changes the last bits of the results",
    )
    batch_tokens: Count = Field(4096, description="number of tokens in a batch when the held-out loss is measured")
    prefill_chunk: Count = Field(
        32768,
        description="contexts of more than N tokens are read in chunks of N tokens, which takes less memory but is 2 "
        "to 3 times slower",
    )
    generation: GenerationChoices = Field(GenerationChoices(), description="answers to held-out rows")
    general: FilePath | None = Field(
        None,
        description="file of rows that differ in kind from the training rows; its first generation.rows rows are also "
        "answered, and a loss above the base's loss shows that the model has forgotten something; null = no file",
    )
    retrieval: RetrievalChoices = Field(RetrievalChoices(), description="long-context retrieval")

    @model_validator(mode="after")
    def _general_rows_are_answered(self) -> Self:
        if self.general is not None and self.generation.rows == 0:
            raise ValueError("general needs generation.rows above 0, because that many rows of its file are answered")
        return self


class EvaluateParams(EvaluateChoices):
    """`EvaluateChoices`, with a value in place of every `auto`."""

    threads: Threads = 1
    generation: GenerationParams = GenerationParams()
    retrieval: RetrievalParams = RetrievalParams()
