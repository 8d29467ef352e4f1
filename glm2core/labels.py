"""What a label says of a token that is only read."""

IGNORED = -100
"""The label of a token without supervision; the ecosystem's value, which other programs skip too."""
