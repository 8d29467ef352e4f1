"""Loads the model that is named in the arguments of `chat`, `predict`, `serve` or `compare`."""

import argparse
from typing import cast

import torch
from transformers import PreTrainedModel

from glm2core.console import Notice
from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.text.chat_format import ChatFormat


def load_answerer(arguments: argparse.Namespace, notice: Notice) -> Answerer:
    """The model and the sampling settings that a command's arguments specify.

    Raises:
        UserError: the folder or the device does not exist, or the folder does not contain a model.
    """
    model, chat_format = load_model_and_format(arguments, notice)
    torch.manual_seed(arguments.seed)
    return Answerer(model, chat_format, Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p))


def load_model_and_format(arguments: argparse.Namespace, notice: Notice) -> tuple[PreTrainedModel, ChatFormat]:
    """The model that the arguments name, on the requested device and in the requested dtype, and its chat format.

    Raises:
        UserError: in the same cases as for `load_answerer`.
    """
    chat_format = ChatFormat.load(arguments.model)
    device = choose_device(arguments.device, key="--device")
    parameters = network_parameters(arguments.model, arguments.base)
    dtype = choose_dtype(arguments.dtype, device, parameters=parameters, key="--dtype", notice=notice)
    model = load_tuned(arguments.model, dtype=dtype, device=device, base=arguments.base, notice=notice)
    chat_format.require_rows(model.config.padded_vocab_size, arguments.model)
    return cast(PreTrainedModel, model), chat_format
