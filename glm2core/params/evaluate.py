"""The section of the evaluate stage: `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glm2core.params.section import Count, NonNegative, Section


class GenerationParams(Section):
    """Answers to held-out rows."""

    rows: NonNegative = Field(64, description="held-out rows answered for ROUGE and BLEU; 0 = none")
    batch_size: Count = Field(16, description="rows answered at once")
    max_new_tokens: Count = Field(128, description="longest answer, in tokens")


class RetrievalParams(Section):
    """The long-context test."""

    tasks: list[Literal["lines", "passkey", "multikey"]] = Field(
        ["lines"], description="what is asked: lines of a record, one passkey, several keys in plain text; [] = nothing"
    )
    lengths: list[Annotated[int, Field(ge=128)]] = Field(
        [512, 1024, 2048, 4096, 8192], description="context lengths in tokens; time grows with the square"
    )
    base_lengths: list[Annotated[int, Field(ge=128)]] = Field(
        [], description="lengths at which model.base, untuned, is asked the same cases; [] = not asked"
    )
    contexts: Count = Field(2, description="contexts at each length and task")
    questions: Count = Field(10, description="questions on each context, spread over its depth; a multiple of depths")
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
    """What is measured on the tuned model."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one, else cpu")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the weights; auto = bfloat16 where the device computes in it or above 1e9 parameters, "
        "else float32",
    )
    threads: Count | None = Field(
        None, description="CPU threads; null = all cores; another count gives other last bits"
    )
    batch_tokens: Count = Field(4096, description="tokens in a batch of the held-out loss")
    prefill_chunk: Count = Field(
        32768, description="longer contexts are read in chunks of so many tokens: less memory, 2 to 3 times slower"
    )
    generation: GenerationParams = Field(GenerationParams(), description="answers to held-out rows")
    retrieval: RetrievalParams = Field(RetrievalParams(), description="long-context retrieval")
