"""Models of any size: which tensors of the files are layers, and one decoder block in memory at a time."""
