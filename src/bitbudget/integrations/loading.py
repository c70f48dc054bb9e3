"""`bitbudget.load`: a finished checkpoint as a transformers model, or the reason why not."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitbudget.checkpoint.native import NativeConfig
from bitbudget.errors import InputError
from bitbudget.integrations.transformers import BitbudgetQuantizer, is_registered, register
from bitbudget.kernels.linear import QuantModule, use_kernels
from bitbudget.models.folder import local_folder, read_config


def load(
    folder: str | Path,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    kernels: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The model of a finished bitbudget folder (or hub id), in evaluation mode; its weights stay packed in memory.

    dtype: of everything that is not quantized and of the activations; "auto" is the config's. device_map: as in
    transformers (None: CPU). kernels: "a16", "a8" or "reference", as in `bitbudget.kernels.use_kernels`. options: handed to
    `AutoModelForCausalLM.from_pretrained`.

    Raises:
        InputError: not a folder of ours, a newer format, tensors that are missing or do not fit, by name; no such kernels.
    """
    folder = local_folder(folder)
    read_config(folder, trust_remote_code, allow_native=True)
    stored = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config")
    if stored is None:
        raise InputError(
            f"{folder} is not quantized: its config.json has no quantization_config. Load it with transformers, or "
            f"make a bitbudget checkpoint of it: bitbudget quantize {folder} --choice int4:g128 -o OUTPUT."
        )
    NativeConfig.from_dict(stored)
    register()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **options,
    )
    _check_loaded(folder, model, info)
    if kernels is not None:  # loading has chosen the default
        use_kernels(model, kernels)
    return model


def _check_loaded(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    is_ours = isinstance(getattr(model, "hf_quantizer", None), BitbudgetQuantizer)
    if not is_registered() or not is_ours or not any(isinstance(module, QuantModule) for module in model.modules()):
        raise InputError(
            f"transformers loaded {folder} without its quantized weights, so the model is unusable: the registration "
            "of bitbudget was removed in this process, or the model's own code loads weights its own way."
        )
    lost = sorted(str(entry) for kind in ("missing_keys", "mismatched_keys") for entry in info.get(kind) or ())
    if lost:
        raise InputError(
            f"{folder} lacks {len(lost)} parameters of the model, first {lost[0]}, and transformers would run with "
            "random ones. A shard is missing or damaged; download or quantize the model again."
        )
