"""Converts conversations to supervised token pairs, and groups the pairs into batches."""
