"""Raw files -> conversations -> supervised token pairs."""
