"""A result of the released P-tuning script: a folder with the prefix alone, beside the network that it belongs to.

Its `base.json`, `{"path": "models/chatglm2-6b"}`, or a command's `--base` names the network.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from glm2core.errors import UserError
from glm2core.files import resolve_path
from glm2core.model.tensors import StoredTensors
from glm2core.model.weight_files import weight_files

_FILE = "base.json"
_PREFIX = "transformer.prefix_encoder."


class PrefixBase(BaseModel):
    """Content of a prefix's base.json.

    Args:
        path: folder of the network, against the project root.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str


def network_files(folder: Path, base: Path | None = None) -> list[Path]:
    """The files that hold a whole network's weights: the folder's, after those of a prefix's base.

    Args:
        base: of a prefix alone; None = as base.json says, where there is one.

    Raises:
        UserError: weights are missing, base.json is none, or there is a base and no prefix alone.
    """
    own = weight_files(folder)
    base = base or _stated(folder)
    if base is None:
        return own
    if any(not name.startswith(_PREFIX) for name in StoredTensors(own)):
        raise UserError(
            f"{folder} holds a network, and {base} is named as its base. A base belongs to a P-tuning prefix alone: "
            f"leave out --base, or remove {folder / _FILE}."
        )
    return [*weight_files(base), *own]


def _stated(folder: Path) -> Path | None:
    file = folder / _FILE
    if not file.is_file():
        return None
    try:
        stated = PrefixBase.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise UserError(
            f'{file} is to name the folder of the network: {{"path": "models/chatglm2-6b"}}. {error}'
        ) from None
    return resolve_path(stated.path)
