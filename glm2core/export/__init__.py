"""Export to the formats of other tools, one module per format; each result is checked before it gets its final name."""
