"""bitbudget: bytes in, verified checkpoint out."""

from bitbudget.integrations.on_import import register_when_imported

register_when_imported()
