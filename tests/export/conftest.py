"""The model folders of the command line's tests."""

from tests.cli.conftest import full_model, lora_model, prefix_model, tokenizer

__all__ = ["full_model", "lora_model", "prefix_model", "tokenizer"]
