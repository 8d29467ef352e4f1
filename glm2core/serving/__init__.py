"""Serve a model over OpenAI's protocol, and compare the answers of such a server with the model's own answers."""
