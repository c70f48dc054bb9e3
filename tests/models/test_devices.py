"""Names of devices, and the number format computed in."""

import pytest
import torch

from bitbudget.errors import InputError
from bitbudget.models.devices import compute_dtype, resolve_device
from zoo import ARCHITECTURES


def test_cpu_computes_in_fp32_whatever_the_model():
    config = ARCHITECTURES["llama"](8)
    config.dtype = torch.bfloat16
    assert resolve_device("cpu") == torch.device("cpu")
    assert compute_dtype(torch.device("cpu"), config) == torch.float32


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.float16, torch.float16),
        ("float16", torch.float16),
        (None, torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_cuda_computes_in_the_models_dtype(stored, computed):
    config = ARCHITECTURES["llama"](8)
    config.dtype = stored
    assert compute_dtype(torch.device("cuda"), config) == computed


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match="no device called"):
        resolve_device(name)


def test_absent_cuda_devices_are_refused():
    with pytest.raises(InputError, match="sees 0 CUDA devices|sees [0-9]+ CUDA"):
        resolve_device("cuda:97")


def test_auto_is_a_device_of_this_machine():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
