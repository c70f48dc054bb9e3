"""From what a user typed to a local folder and its config, or to the reason why that model cannot be read."""

import json
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from bitbudget.checkpoint.native import QUANT_METHOD as OURS
from bitbudget.errors import InputError

HUB_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.md",
    "*.jinja",
    "*.model",
    "*.py",
    "LICENSE*",
    "NOTICE*",
    "*.tiktoken",
)
QUANTIZER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # written by older quantizers


def local_folder(folder_or_hub_id: str | Path) -> Path:
    """The folder itself, or the local copy of a model of the Hugging Face hub, downloaded if needed.

    Raises InputError if there is no such folder and the text is no hub id, or the download fails.
    """
    path = Path(folder_or_hub_id).expanduser()
    if path.is_dir():
        return path
    text = str(folder_or_hub_id)
    if path.is_file():
        raise InputError(f"{text} is a file. A model is a folder with config.json and safetensors files.")
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or text.endswith("/"):
        raise InputError(f"There is no folder {text}.")
    return _download(text)


def _download(hub_id: str) -> Path:
    # Imported here: a local folder needs nothing of the hub.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_PATTERNS)))
    # The hub raises its own errors, those of two HTTP libraries, OSError and ValueError; for a user all mean one thing.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{hub_id!r} is no folder here, and the Hugging Face hub did not deliver a model of that name ({reason}). "
            "Check the spelling; offline, download the model on another machine and give the folder's path."
        ) from error


def read_config(folder: Path, trust_remote_code: bool, allow_native: bool) -> PreTrainedConfig:
    """The transformers config of a decoder-only model that is not quantized yet.

    `allow_native` accepts a folder written by bitbudget; its `quantization_config` is left out of the result.
    Raises InputError with its own reason for no or a damaged config.json, an already quantized model, an
    encoder-decoder, an architecture that this transformers does not know, and one that generates no text.
    """
    raw = _raw_config(folder)
    _refuse_quantized(folder, raw, allow_native)
    _refuse_unknown(folder, raw, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    # Config classes validate in many ways, remote ones run any code; the reason is told whatever its type.
    except Exception as error:
        raise InputError(
            f"{folder / 'config.json'} is refused by transformers {transformers.__version__}: {error}"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{folder} holds an encoder-decoder model ({config.model_type}). bitbudget reads decoder-only models."
        )
    if not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{folder} holds a model of type {config.model_type!r}, for which transformers {transformers.__version__} "
            "has no class that predicts the next token. bitbudget reads decoder-only language models."
        )
    config.__dict__.pop("quantization_config", None)
    return config


def _raw_config(folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no config.json, so nothing says which model it holds. Copy it from the model's page."
        )
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise InputError(f"{path} names no `model_type`, so nothing says which architecture the model has.")
    return raw


def _refuse_quantized(folder: Path, raw: dict[str, object], allow_native: bool) -> None:
    text_config = raw.get("text_config")
    nested = text_config.get("quantization_config") if isinstance(text_config, dict) else None
    found = raw.get("quantization_config") or raw.get("compression_config") or nested
    if found:
        method = found.get("quant_method", "unnamed") if isinstance(found, dict) else "unnamed"
        if allow_native and method == OURS:
            return
        raise InputError(
            f"{folder} is already quantized (quant_method {method!r} in its config.json). Quantizing twice would add "
            "both errors; start from the original 16-bit or 32-bit model."
        )
    for name in QUANTIZER_FILES:
        if (folder / name).is_file():
            raise InputError(f"{folder} is already quantized (it holds {name}). Start from the original 16-bit model.")


def _refuse_unknown(folder: Path, raw: dict[str, object], trust_remote_code: bool) -> None:
    if raw["model_type"] in CONFIG_MAPPING or trust_remote_code:
        return
    remote = (
        " The folder brings its own model code (auto_map): read it, and if you trust it add --trust-remote-code."
        if raw.get("auto_map")
        else " A newer transformers may know it."
    )
    raise InputError(
        f"{folder} holds a model of type {raw['model_type']!r}, which transformers {transformers.__version__} does not "
        f"know.{remote}"
    )
