"""params.yaml -> frozen typed sections. The only reader of that file; imports no torch.

Every stage calls `load_params` first, so that a wrong key, type, value or combination stops the
run in a second, with the key, the value, what is allowed, and the nearest name.
"""

from glm2core.params.data import ConvertParams, GeneratedLines, Source, TokenizeParams
from glm2core.params.evaluate import EvaluateParams, GenerationParams, RetrievalParams
from glm2core.params.file import PARAMS_FILE, Params, TrackingParams, flatten, load_params
from glm2core.params.model import ModelParams, RopeParams
from glm2core.params.train import CurriculumStage, LoraParams, PrefixParams, TrainParams

__all__ = [
    "PARAMS_FILE",
    "ConvertParams",
    "CurriculumStage",
    "EvaluateParams",
    "GeneratedLines",
    "GenerationParams",
    "LoraParams",
    "ModelParams",
    "Params",
    "PrefixParams",
    "RetrievalParams",
    "RopeParams",
    "Source",
    "TokenizeParams",
    "TrackingParams",
    "TrainParams",
    "flatten",
    "load_params",
]
