"""The label of tokens that the model only reads, without supervision."""

IGNORED = -100
"""The label of a token without supervision. It is PyTorch's usual value, which other programs skip as well."""
