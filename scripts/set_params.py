"""Change keys of params.yaml permanently, as `dvc exp run -S` does, and keep all comments.

    python scripts/set_params.py train.max_steps=20 'evaluate.retrieval.lengths=[512, 1024]'

Values are written in YAML. If a key is not in the file, already has the value, or does not accept it, the command fails
and writes nothing. A script that shortens a run in this way therefore never starts the long run by mistake.
"""

import io
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from glm2core.errors import UserError  # noqa: E402
from glm2core.params import PARAMS_FILE, parse_params  # noqa: E402


def main(changes: list[str]) -> int:
    try:
        text = changed(PARAMS_FILE.read_text(encoding="utf-8"), changes)
        parse_params(text)
    except (OSError, UserError) as error:
        print(f"set_params: {error}", file=sys.stderr)
        return 1
    PARAMS_FILE.write_text(text, encoding="utf-8")
    return 0


def changed(text: str, changes: list[str]) -> str:
    """Return the file's text with all changes of the form `section.key=value`."""
    if not changes:
        raise UserError("there is nothing to change. Name keys and values, as in train.max_steps=20")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # long lines stay as they are
    params = yaml.load(text)
    for change in changes:
        key, equals, written = change.partition("=")
        *parents, name = key.split(".")
        section: Any = params
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not equals or not isinstance(section, dict) or name not in section:
            raise UserError(f"{change}: params.yaml has no such key. Write section.key=value")
        value = yaml.load(written)
        if section[name] == value:
            raise UserError(f"{change}: the key already has this value")
        section[name] = value
    out = io.StringIO()
    yaml.dump(params, out)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
