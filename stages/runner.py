"""What every stage has in common: params are checked first, errors are sentences, exit codes tell the truth."""

import sys
from collections.abc import Callable

from glm2core.errors import UserError
from glm2core.params import Params, load_params
from glm2core.process import prepare_process

INTERRUPTED = 130


def run_stage(name: str, stage: Callable[[Params], None]) -> int:
    """Run one stage and return its exit code: 0 only when its outputs are whole."""
    try:
        prepare_process()
        stage(load_params())
    except UserError as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; nothing half-done was kept. Run again to go on.", file=sys.stderr)
        return INTERRUPTED
    return 0
