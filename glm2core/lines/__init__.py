"""Generates records of lines with questions about them, for training and for measuring retrieval."""
