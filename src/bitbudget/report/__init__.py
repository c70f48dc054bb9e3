"""What people read: tables, charts, progress, errors. Nothing here loads torch or transformers when imported."""
