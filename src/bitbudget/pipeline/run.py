"""`run`: a finished checkpoint continues a prompt, in the memory that was promised."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.checkpoint.native import NativeConfig
from bitbudget.errors import InputError
from bitbudget.heap import bound_heap
from bitbudget.kernels import best_isa, packs
from bitbudget.models.devices import resolve_device
from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.cache_size import kv_cache
from bitbudget.pipeline.generate import Generated, Sampling, generate, has_chat_template, prompt_ids
from bitbudget.pipeline.memory import MemoryPromise, UnknownMemory, memory_promise
from bitbudget.pipeline.offers import packing
from bitbudget.pipeline.record import RECORD_NAME, read_record
from bitbudget.pipeline.watch import MemoryWatch
from bitbudget.storage import Choice

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class RunMemory:
    """Bytes. weights: of the tensors in the files. peak: measured, beside `libraries`: interpreter, libraries, tokenizer.

    packing: what the weights take beyond that once they are packed for the CPU kernels. promise: None where nobody knows
    what the model keeps; then `unknown` says why. mapped, exact: see `MemoryWatch`.
    """

    weights: int
    packing: int
    promise: MemoryPromise | None
    unknown: str | None
    peak: int
    mapped: int
    libraries: int
    exact: bool

    @property
    def promised(self) -> int | None:
        return None if self.promise is None else self.weights + self.packing + self.promise.beside_weights

    def to_dict(self) -> dict[str, Any]:
        promise = None if self.promise is None else self.promise.to_dict()
        return asdict(self) | {"promise": promise, "promised": self.promised}


@dataclass(frozen=True)
class Runnable:
    """A checkpoint of which only config and headers were read. context: tokens of prompt and answer at most."""

    tokenizer: Tokenizer
    device: torch.device
    dtype: str
    context: int
    files: tuple[Path, ...]
    weights: int
    packing: int
    promise: MemoryPromise | None
    unknown: str | None

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str,
        dtype: str = "auto",
        context: int | None = None,
        trust_remote_code: bool = False,
        kernels: str | None = None,
    ) -> "Runnable":
        """dtype: of all that is not quantized, and of the cache; "auto" is the checkpoint's own. context: by default that
        of the checkpoint's memory budget, else the model's longest, at most 8,192. kernels: as in `use_kernels`; packing
        for them is counted on the CPU.

        Raises:
            InputError: no folder of ours, or a damaged one; no such device or dtype; a context beyond the model's.
        """
        if dtype not in DTYPES:
            raise InputError(f"{dtype!r} is no dtype to run in. Write one of {', '.join(DTYPES)}.")
        where = resolve_device(device)
        source = SourceModel.open(folder, trust_remote_code, allow_native=True)
        tokens = kv_cache(source, context or _recorded_context(folder)).context
        promise = unknown = None
        try:
            promise = memory_promise(
                source, tokens, None, where, None, dtype=None if dtype == "auto" else getattr(torch, dtype)
            )
        except UnknownMemory as reason:
            unknown = str(reason)
        weights = sum(info.nbytes for info in source.checkpoint.tensors.values())
        tokenizer = Tokenizer.open(folder, trust_remote_code)
        packed = packing(_choices(source)) if packs(where, kernels) and best_isa() else 0
        return cls(tokenizer, where, dtype, tokens, source.checkpoint.files, weights, packed, promise, unknown)

    def ids(self, prompt: str, raw: bool) -> tuple[list[int], bool]:
        """Tokens of the prompt, and whether they are a chat's: raw leaves out the model's chat template.

        Raises:
            InputError: a prompt without a single token, or one that the chat template refuses.
        """
        chat = has_chat_template(self.tokenizer) and not raw
        return prompt_ids(self.tokenizer, prompt, chat), chat

    def write(
        self, load: Callable[[str], PreTrainedModel], ids: list[int], sampling: Sampling, emit: Callable[[str], None]
    ) -> tuple[Generated, RunMemory]:
        """Continue a prompt; `emit` gets the text word by word. load: the model in a dtype of that name.

        Raises:
            InputError: the prompt leaves no room in the context.
        """
        bound_heap()
        with MemoryWatch(self.device, self.files) as watch:
            model = load(self.dtype).to(self.device)  # a device_map would need the package accelerate
            made = generate(model, self.tokenizer, ids, sampling, emit, self.context)
        measured = watch.peak, watch.mapped, watch.before, watch.exact
        return made, RunMemory(self.weights, self.packing, self.promise, self.unknown, *measured)


def _choices(source: SourceModel) -> dict[Layer, Choice]:
    """Of the layers that a checkpoint of ours stores."""
    stored = json.loads((source.folder / "config.json").read_text("utf-8")).get("quantization_config")
    choices = NativeConfig.from_dict(stored).layers if stored else {}
    return {layer: choices[layer.name] for layer in source.layers if layer.name in choices}


def _recorded_context(folder: Path) -> int | None:
    """The context that the checkpoint's memory budget was made for."""
    if not (folder / RECORD_NAME).is_file():
        return None
    recorded = read_record(folder)[0].get("memory")
    context = recorded.get("context") if isinstance(recorded, dict) else None
    return context if isinstance(context, int) else None
