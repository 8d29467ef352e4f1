"""A model in the formats of other tools: a module a format, each checked before the result takes its name."""
