"""A model that answers OpenAI's protocol, and the comparison of such a server with the model."""
