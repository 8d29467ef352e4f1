"""`python -m glm2core ui`: starts MLflow's web pages on a free port and prints their addresses."""

import argparse

from glm2core.params import load_params
from glm2core.tracking.pages import become_pages


def run(arguments: argparse.Namespace) -> None:
    """Print the addresses, then replace this process with MLflow's server.

    Raises:
        UserError: no port is free, or the store is the user's own MLflow server.
    """
    become_pages(load_params().tracking.experiment, arguments.port)
