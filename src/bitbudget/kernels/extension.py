"""The compiled CPU kernels, where the package was installed with them."""

import functools
import importlib
import warnings
from types import ModuleType

import torch

ISAS = ("portable", "avx2", "avx2_vnni", "avx512_vnni", "neon_dotprod", "neon_i8mm")  # numbered as in cpu/kernels.h

MODULE = "bitbudget.kernels._cpu"


@functools.cache
def extension() -> ModuleType | None:
    """The module `_cpu`; None, with a warning the first time, where the package has none that this process can load.

    The module names no OpenMP library. On Linux its threads are those of the one that torch has loaded, and made known to
    the whole process, when torch was imported.
    """
    reason = why_missing()
    if reason is None:
        return importlib.import_module(MODULE)
    warnings.warn(reason, RuntimeWarning, stacklevel=2)
    return None


@functools.cache
def why_missing() -> str | None:
    """What to tell a user of a package without compiled kernels; None where they are there."""
    assert torch.get_num_threads() >= 1  # torch has to be loaded before the module
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        return (
            f"bitbudget runs on its reference kernels, which are correct and slow: its CPU kernels cannot be loaded ({error}). "
            "They are compiled when the package is installed; install a C++17 compiler, then bitbudget again."
        )
    return None


def compiled() -> ModuleType:
    """The extension, for those who cannot be there without it."""
    found = extension()
    assert found is not None
    return found


def supported_isas() -> tuple[str, ...]:
    """Names of the instruction sets that this machine has kernels for; none without the extension."""
    module = extension()
    return () if module is None else tuple(name for number, name in enumerate(ISAS) if module.supported(number))


def best_isa() -> str | None:
    """The fastest of them; None without the extension."""
    module = extension()
    return None if module is None else ISAS[module.best()]
