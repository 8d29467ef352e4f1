"""What every stage has in common: params are checked first, errors are sentences, exit codes tell the truth."""

import sys
from collections.abc import Callable

from glm2core.params import Params, load_params
from glm2core.process import prepare_process
from glm2core.sentences import sentence_of

INTERRUPTED = 130


def run_stage(name: str, stage: Callable[[Params], None]) -> int:
    """Run one stage and return its exit code: 0 only when its outputs are whole."""
    try:
        prepare_process()
        stage(load_params())
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        print(f"\n{name}: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; nothing half-done was kept. Run again to go on.", file=sys.stderr)
        return INTERRUPTED
    return 0
