"""What people read: tables, charts, progress and error messages. Nothing here loads torch or transformers when imported."""
