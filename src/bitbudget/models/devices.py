"""Where a model is computed, and in which number format."""

import torch

from bitbudget.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device called `auto` (a CUDA device if there is one, else the CPU), `cpu`, `cuda` or `cuda:<index>`.

    Raises InputError for any other name and for a CUDA device that this machine does not have.
    """
    kind, _, index = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise InputError(f"There is no device called {name!r}. Write auto, cpu, cuda or cuda:0, cuda:1 and so on.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise InputError(
            f"The device {name} was asked for, but torch {torch.__version__} sees {count} CUDA devices here. "
            "Use --device cpu, or install a torch build with CUDA if this machine has such a device."
        )
    return torch.device(name)


def compute_dtype(device: torch.device, config: object) -> torch.dtype:
    """fp32 on the CPU; elsewhere the dtype that the model's config names (bf16 if it names none)."""
    if device.type == "cpu":
        return torch.float32
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.bfloat16
