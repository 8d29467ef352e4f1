"""Generated rows of text analysis: questions about texts and dialogues whose answers stand in them."""
