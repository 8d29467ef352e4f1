"""Generates rows of text analysis, which ask questions about texts and dialogues that contain the answers."""
