"""What every stage has in common: params are checked first, errors are sentences, exit codes tell the truth."""

import os
import sys
from collections.abc import Callable

from glm2core.errors import UserError
from glm2core.params import Params, load_params

INTERRUPTED = 130


def run_stage(name: str, stage: Callable[[Params], None]) -> int:
    """Run one stage and return its exit code: 0 only when its outputs are whole."""
    # Read by OpenMP when torch is imported. Threads that wait by spinning take the cores from one another: two
    # trainings at once (`dvc queue start -j 2`) were eight times slower. Threads that sleep at once wake late: one
    # training alone was twice as slow. A short spin costs neither.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        stage(load_params())
    except UserError as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; nothing half-done was kept. Run again to go on.", file=sys.stderr)
        return INTERRUPTED
    return 0
