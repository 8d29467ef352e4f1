"""What `chat`, `predict`, `serve` and `compare` share: the model their arguments name."""

import argparse

import torch

from glm2core.console import Notice
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.text.chat_format import ChatFormat


def load_answerer(arguments: argparse.Namespace, notice: Notice) -> Answerer:
    """The model that a command's arguments name.

    Raises:
        UserError: no such folder, no model in it, or a device that isn't there.
    """
    chat_format = ChatFormat.load(arguments.model)
    device = choose_device(arguments.device, key="--device")
    dtype = choose_dtype(arguments.dtype, device, parameters=network_parameters(arguments.model), notice=notice)
    model = load_tuned(arguments.model, dtype=dtype, device=device, notice=notice)
    chat_format.require_rows(model.config.padded_vocab_size, arguments.model)
    torch.manual_seed(arguments.seed)
    return Answerer(model, chat_format, Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p))
