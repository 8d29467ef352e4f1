"""Run a GGUF file with llama.cpp in this process, through the package xllamacpp.

Completions are function calls. The ids of texts and chats come from an HTTP server, which the package runs on the
loopback interface while the model is loaded.
"""

import json
import urllib.request
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm2core.conversation import Message
from glm2core.process import available_cores

_CERTAIN = 1e9  # added to a logit


def is_there() -> bool:
    """Whether llama.cpp is installed on this machine."""
    return util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A loaded GGUF file.

    Args:
        file: path of the model's GGUF file.
        context: largest number of tokens in the prompt and the answer together.
        adapters: GGUF files of LoRA adapters that are applied to the model.
        exact: whether to compute with the highest precision, with fp32 keys and values and without flash attention.
    """

    def __init__(self, file: Path, *, context: int, adapters: Iterable[Path] = (), exact: bool = True) -> None:
        import xllamacpp  # an extra

        params: Any = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_predict = 1
        params.warmup = False
        params.verbosity = 0
        params.cpuparams.n_threads = available_cores()
        params.n_gpu_layers = 0
        params.fit_params = False
        params.no_extra_bufts = True  # weights stay mapped, and are not repacked in memory
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
        self._server: Any = xllamacpp.Server(params)
        self._drawn = self.text_ids("a")[-1]

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> Tensor:
        """Return the log-probabilities [V] of the token after a prompt, with -inf where llama.cpp reports none.

        If a prompt begins like the previous prompt, the common beginning is not read again.

        Args:
            vocabulary: number `V` of tokens in the vocabulary.
        """
        request = {
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": vocabulary,
            "n_probs": vocabulary,
            "cache_prompt": True,
            # Reported only if the drawn token is complete text and does not end the answer, so such a token is forced
            "logit_bias": [[self._drawn, _CERTAIN]],
        }
        answer = self._server.handle_completions(request)
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp: {answer}")
        [step] = answer["choices"][0]["logprobs"]["content"]
        found = torch.full((vocabulary,), -torch.inf)
        told = step["top_logprobs"]
        found[[entry["id"] for entry in told]] = torch.tensor([float(entry["logprob"]) for entry in told])
        return found

    def answer(self, ids: Sequence[int], tokens: int) -> str:
        """Return the text of a greedy answer that has at most `tokens` tokens."""
        request = {"prompt": list(ids), "max_tokens": tokens, "temperature": 0, "cache_prompt": True}
        return str(self._server.handle_completions(request)["choices"][0]["text"])

    def greedy(self, ids: Sequence[int], tokens: int, vocabulary: int) -> tuple[list[int], Tensor]:
        """Continue a prompt greedily, and return the new ids and the log-probabilities [N, V] of all N steps."""
        answer: list[int] = []
        rows = []
        for _ in range(tokens):
            rows.append(self.log_probabilities([*ids, *answer], vocabulary))
            answer.append(int(rows[-1].argmax()))
        return answer, torch.stack(rows)

    @property
    def address(self) -> str:
        """The address of the HTTP server on the loopback interface."""
        return str(self._server.listening_address)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text, in which special tokens are read as plain text."""
        ids: list[int] = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": False})[
            "tokens"
        ]
        return ids

    def chat_ids(self, messages: list[Message]) -> list[int]:
        """Return the ids of a conversation's prompt, formatted with the chat template in the file."""
        prompt = self._post("/apply-template", {"messages": messages})["prompt"]
        ids: list[int] = self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})[
            "tokens"
        ]
        return ids

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignore a proxy set in the environment
        with here.open(request, timeout=600) as answer:
            value: dict[str, Any] = json.load(answer)
        return value
