"""`python -m glm2core`: the command line."""

import sys

from glm2core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
