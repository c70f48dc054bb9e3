"""Calibration: from a text file to the token sequences that a model is measured on.

`documents.read_text` makes documents of a file, `split.split` three parts of them that never overlap,
`tokens.sequences` windows of token ids of a part, `tokens.take` a limited sample of these, spread over the documents.
"""
