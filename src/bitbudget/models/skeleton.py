"""A whole transformers model that occupies no memory: parameters on the meta device, buffers real."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from bitbudget.errors import InputError


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty` allocates nothing: that is how modules make the parameters they are going to initialise.

    Buffers such as rotary frequencies are computed (`arange`, `tensor`), so they come out real.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_skeleton(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model that `AutoModelForCausalLM.from_pretrained(…, dtype=dtype)` would fill, in evaluation mode.

    Parameters have their loading dtype (transformers keeps some in fp32). Tied parameters are one object.
    The global random state stays as it was. Raises InputError if the model class cannot be built.
    """
    config = copy.deepcopy(config)  # transformers writes dtype and attention into the config it is given
    choices = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code, **choices
            )
    # Model classes raise whatever they like for a config they cannot build; the reason is told whatever its type.
    except Exception as error:
        raise InputError(f"transformers cannot build the {config.model_type} model of this config: {error}") from error
    _parameters_to_meta(model, _kept_in_fp32(model, dtype))
    return model.eval().requires_grad_(False)


def _kept_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str] | None:
    plan = model._get_dtype_plan(dtype)
    kept = [pattern.replace("*", ".*") for pattern, kept_dtype in plan.items() if kept_dtype == torch.float32]
    return re.compile("|".join(kept)) if kept else None


def _parameters_to_meta(model: nn.Module, kept_in_fp32: re.Pattern[str] | None) -> None:
    moved: dict[int, nn.Parameter] = {}
    originals: list[Tensor] = []  # keeps ids unique while `moved` is keyed by them
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full_name = f"{path}.{name}" if path else name
            dtype = torch.float32 if kept_in_fp32 and kept_in_fp32.search(full_name) else parameter.dtype
            if id(parameter) not in moved:
                empty = torch.empty(parameter.shape, dtype=dtype, device="meta")
                moved[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                originals.append(parameter)
            module._parameters[name] = moved[id(parameter)]
