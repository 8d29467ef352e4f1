"""`python -m glm2core`: chat, predict, export, memory."""

import sys

from glm2core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
