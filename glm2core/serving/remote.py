"""An HTTP client for servers that use OpenAI's protocol."""

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from glm2core.console import Notice
from glm2core.conversation import Message
from glm2core.errors import UserError, printable, shown_names

_SECONDS = 3600  # a long prompt on a CPU takes long
_LONGEST_REASON = 300


@dataclass(frozen=True)
class RemoteAnswer:
    """A server's answer.

    Attributes:
        prompt_tokens: number of tokens in the prompt as the server counts them; None = not reported.
        logprobs: log-probabilities of the answer's tokens; None = not reported.
    """

    text: str
    finished: bool
    prompt_tokens: int | None
    logprobs: list[float] | None


@dataclass
class Remote:
    """A server, and the name of the model that answers there.

    Attributes:
        url: the server's URL up to and including `/v1`.
        model: the name of the model in requests.
        tells_logprobs: False once the server has refused to report log-probabilities.
    """

    url: str
    model: str
    tells_logprobs: bool = True

    @classmethod
    def connect(cls, url: str, name: str | None, notice: Notice) -> "Remote":
        """Connect to a server, and ask which models it serves.

        Args:
            name: the model's name, which is used unchecked if the server can't list its models; None = the only model
                that the server lists.

        Raises:
            UserError: the server does not answer, or `name` is None and the server does not list exactly one model.
        """
        if not url.lower().startswith(("http://", "https://")):
            raise UserError(f"--url is {url!r}, which is not an HTTP URL. Give a URL like http://127.0.0.1:8080/v1")
        url = url.rstrip("/")
        try:
            names = [entry["id"] for entry in _call(f"{url}/models", None)["data"]]
        except _RefusedError as error:
            if name is not None:  # e.g. transformers serve can't list its models without a download cache
                notice(f"warning: {url}/models returned {error}")
                return cls(url, name)
            raise UserError(
                f"{url}/models returned {error}. Give a --url to which /models can be added, such as one ending in /v1."
            ) from None
        except (KeyError, TypeError, IndexError):
            raise UserError(f"{url}/models does not list models in the form of OpenAI's protocol.") from None
        if name is None and len(names) != 1:
            raise UserError(f"{url} serves {len(names)} models: {shown_names(names)}. Choose one with --name.")
        if name is not None and name not in names:
            notice(f"warning: {url} does not list {name!r}; it lists {shown_names(names)}")
        return cls(url, name or names[0])

    def answer(self, messages: list[Message], max_tokens: int) -> RemoteAnswer:
        """Ask the server for a greedy answer.

        Raises:
            UserError: the server does not answer, or refuses the prompt.
        """
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        try:
            return self._read(_call(f"{self.url}/chat/completions", body | self._wish()))
        except _RefusedError as error:
            if not self.tells_logprobs:
                raise UserError(f"{self.url} refused a prompt: {error}. {_CONTEXT}") from None
        self.tells_logprobs = False
        return self.answer(messages, max_tokens)

    def _wish(self) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": 1} if self.tells_logprobs else {}

    def _read(self, value: dict[str, Any]) -> RemoteAnswer:
        try:
            choice = value["choices"][0]
            text = choice["message"]["content"] or ""
            content = (choice.get("logprobs") or {}).get("content")
            logprobs = [float(entry["logprob"]) for entry in content] if content else None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.url} does not answer in the form of OpenAI's protocol: {error!r}") from None
        tokens = (value.get("usage") or {}).get("prompt_tokens")
        return RemoteAnswer(text, choice.get("finish_reason") == "stop", tokens, logprobs)


_CONTEXT = (
    "If the context is too short, start the server with a longer one (llama-server --ctx-size, vllm "
    "--max-model-len, sglang --context-length), or lower --lengths."
)


class _RefusedError(Exception):
    """A status of 400 or more, with the server's message."""


def _call(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            value: dict[str, Any] = json.load(answer)
            return value
    except urllib.error.HTTPError as error:
        words = printable(error.read().decode(errors="replace"))[:_LONGEST_REASON]
        raise _RefusedError(f"status {error.code}: {words}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = printable(str(getattr(error, "reason", error)) or type(error).__name__)[:_LONGEST_REASON]
        raise UserError(f"{url} can't be reached: {reason}. Start the server, or fix --url.") from None
