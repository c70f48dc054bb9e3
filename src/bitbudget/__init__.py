"""bitbudget: bytes in, verified checkpoint out."""
