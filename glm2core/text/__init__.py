"""Converts conversations to supervised token pairs, and makes batches of these."""
