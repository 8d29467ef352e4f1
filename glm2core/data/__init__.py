"""Converts raw files to conversations."""
