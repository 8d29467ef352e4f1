"""Serve a model with OpenAI's protocol, and compare such a server with the model."""
