"""Versions that the bytes of a checkpoint and the numbers of a measurement depend on."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Package -> version."""
    packages = ("bitbudget", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
