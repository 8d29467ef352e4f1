"""The output of the released P-tuning script: a folder that holds only the prefix, without its network.

The network is named by the folder's `base.json`, such as `{"path": "models/chatglm2-6b"}`, or by a command's `--base`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from glm2core.errors import UserError
from glm2core.files import resolve_path
from glm2core.model.weight_files import mapped_weights, weight_files
from glm2core.params.model_files import ModelFile, read_model_file

_FILE = "base.json"
_PREFIX = "transformer.prefix_encoder."


class PrefixBase(ModelFile):
    """The content of a prefix's base.json.

    Args:
        path: folder of the network, relative to the project root.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)]


def network_files(folder: Path, base: Path | None = None) -> list[Path]:
    """Return the files with a whole network's weights; the files of a prefix's base precede the folder's own files.

    Args:
        base: folder of the network, if `folder` holds only a prefix; None = the path in base.json, if that file exists.

    Raises:
        UserError: weights are missing, base.json is invalid, or a base is named but the folder holds more than a
            prefix.
    """
    own = weight_files(folder)
    base = base or _stated(folder)
    if base is None:
        return own
    if any(not name.startswith(_PREFIX) for name in mapped_weights(own)):
        raise UserError(
            f"{folder} holds a network, but {base} is named as its base. Only an adapter or a P-tuning "
            f"prefix needs a base, so leave out --base, or remove {folder / _FILE}."
        )
    return [*weight_files(base), *own]


def _stated(folder: Path) -> Path | None:
    stated = read_model_file(folder / _FILE, PrefixBase)
    return None if stated is None else resolve_path(stated.path)
