"""Generates rows of text analysis: questions about texts and dialogues that contain the answers."""
