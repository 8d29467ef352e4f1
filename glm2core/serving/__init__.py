"""Serve a model with OpenAI's protocol, and compare a server that uses this protocol with the model."""
