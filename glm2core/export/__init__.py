"""Export models to the file formats of other tools, with one module per format.

Each result is checked before it gets its final name.
"""
