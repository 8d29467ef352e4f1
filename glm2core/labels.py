"""The label of tokens that are only read."""

IGNORED = -100
"""The label of a token without supervision; the ecosystem's value, which other programs skip as well."""
