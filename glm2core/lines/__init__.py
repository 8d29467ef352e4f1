"""Generated records of lines with questions about them: to train on, and to measure retrieval by."""
