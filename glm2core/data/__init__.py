"""Raw files -> conversations."""
