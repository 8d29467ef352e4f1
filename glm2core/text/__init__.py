"""Conversations -> supervised token pairs, and batches of them."""
