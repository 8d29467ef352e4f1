"""Real data where it is at hand."""

from tests.text.conftest import alpaca_files

__all__ = ["alpaca_files"]
