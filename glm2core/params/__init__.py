"""Reads params.yaml into frozen typed sections, without importing torch. No other package reads that file.

A class whose name ends in Choices holds a section as it stands in params.yaml, where some keys may be `auto`. `settle`
turns each Choices class into the class whose name ends in Params, which all other code uses.

Every stage calls `load_params` first. A wrong key, type, value or combination therefore stops the run within a second.
The error message states the key, the value, what is allowed, and the nearest name.
"""

from glm2core.params.advice import Base, read_base
from glm2core.params.data import AnalysisKinds, ConvertParams, GeneratedAnalysis, GeneratedLines, Source, TokenizeParams
from glm2core.params.evaluate import EvaluateParams, GenerationParams, RetrievalParams
from glm2core.params.file import (
    PARAMS_FILE,
    Params,
    TrackingParams,
    changed,
    flatten,
    load_params,
    parse_params,
    unsettled,
)
from glm2core.params.model import ModelParams, RopeChoices, RopeParams
from glm2core.params.section import AUTO
from glm2core.params.settle import settle, settle_tokenize
from glm2core.params.settled import (
    DEVICE_KINDS,
    SETTLED_FILE,
    DeviceKind,
    Settled,
    TuningRecord,
    read_tuning_record,
    shown,
)
from glm2core.params.train import FIT, CurriculumStage, LoraParams, PrefixParams, TrainParams

__all__ = [
    "AUTO",
    "DEVICE_KINDS",
    "FIT",
    "PARAMS_FILE",
    "SETTLED_FILE",
    "AnalysisKinds",
    "Base",
    "ConvertParams",
    "CurriculumStage",
    "DeviceKind",
    "EvaluateParams",
    "GeneratedAnalysis",
    "GeneratedLines",
    "GenerationParams",
    "LoraParams",
    "ModelParams",
    "Params",
    "PrefixParams",
    "RetrievalParams",
    "RopeChoices",
    "RopeParams",
    "Settled",
    "Source",
    "TokenizeParams",
    "TrackingParams",
    "TrainParams",
    "TuningRecord",
    "changed",
    "flatten",
    "load_params",
    "parse_params",
    "read_base",
    "read_tuning_record",
    "settle",
    "settle_tokenize",
    "shown",
    "unsettled",
]
