"""Makes attention sharper by a change of the weights alone, so that whatever loads the weights computes it."""

from torch import Tensor

from glm2core.model.config import ChatGLM2Config

_QUERY_KEY_VALUE = ".query_key_value."


def with_scaled_queries(weights: dict[str, Tensor], config: ChatGLM2Config, factor: float) -> dict[str, Tensor]:
    """Return the weights, with all attention queries multiplied by a factor; the given tensors are not changed.

    The rows (and biases) of `query_key_value` that make the queries are multiplied. With a factor above 1, attention is
    sharper: in a context with many more tokens than in training, softmax otherwise spreads attention over too many of
    them (Chiang & Cholak 2022, arXiv:2202.12172). YaRN also sharpens attention, but in ChatGLM2 it reaches only the
    rotated half of the channels.
    """
    queries = config.num_attention_heads * config.kv_channels

    def scaled(weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight[:queries] *= factor
        return weight

    return {name: scaled(weight) if _QUERY_KEY_VALUE in name else weight for name, weight in weights.items()}
