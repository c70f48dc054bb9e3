"""`QuantLinear` and `QuantEmbedding`: modules whose buffers are exactly the stored tensors.

Names and shapes of the buffers equal those of the file, so any loader that fills a state dict loads them. The stored
tensors are all that stays in memory. `weight` is an empty buffer: it is in the file too (see `NativeLayout`), carries
the module's compute dtype, and tells device and dtype to code that looks at `module.weight`.

On the CPU a linear can hold its weight packed for the fast kernels instead (`use_kernels`); its state dict stays the
stored tensors, bit for bit.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.heap import return_freed_memory
from bitbudget.kernels import reference
from bitbudget.kernels.extension import best_isa, supported_isas
from bitbudget.kernels.inputs import ACTIVATIONS, RUN_IN, SharedInputs
from bitbudget.kernels.packed import PackedLinear, misfit
from bitbudget.kernels.tensors import Range, StoredTensors, mapped_files
from bitbudget.storage import NATIVE, Choice, Shape, StoredWeight

KERNELS = (*ACTIVATIONS, "reference")
DEFAULT_KERNELS = "a16"


class QuantModule(nn.Module):
    """A weight [out, in] held as the tensors of its choice, or packed for the CPU."""

    weight: Tensor
    packed: PackedLinear | None
    looked_up = False  # whether rows are read one by one, too

    def __init__(
        self, choice: Choice, shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.choice = choice
        self.shape = shape
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=device))
        for spec in NATIVE.specs(choice, shape):
            group, _, name = spec.name.rpartition(".")
            if not group:
                continue
            if group not in self._modules:
                self.add_module(group, StoredTensors())
            empty = torch.empty(spec.shape, dtype=spec.dtype, device=device)
            self._modules[group].register_buffer(name, empty)  # type: ignore[union-attr]
        self.add_module("packed", None)

    @property
    def kernels(self) -> str:
        """Which of `KERNELS` multiply."""
        return "reference" if self.packed is None else ACTIVATIONS[self.packed.activations]

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, named relative to the layer: the buffers, or made again from the packed weight."""
        if self.packed is not None:
            return self.packed.tensors()
        return {
            f"{group}.{name}": tensor
            for group, part in self._modules.items()
            if isinstance(part, StoredTensors)
            for name, tensor in part.named_buffers()
        }

    def stored(self, bias: Tensor | None = None) -> StoredWeight:
        """The weight, sharing the buffers if it is not packed."""
        return StoredWeight.from_tensors(self.choice, self.shape, self.tensors(), bias)

    def multiply(self, x: Float[Tensor, "*batch in"], bias: Tensor | None) -> Float[Tensor, "*batch out"]:
        """x Ŵᵀ + bias, in x's dtype, by the fastest kernels for what is held."""
        packed = self._modules["packed"]  # quicker than by name, once a product
        if packed is None or not _runs_packed(x):
            return reference.linear(x, self.stored(bias))
        result: Tensor = packed.forward(x, bias)
        return result

    def fill(self, weight: StoredWeight) -> None:
        """Take over the tensors of a weight of the same choice and shape, without a copy."""
        self.packed = None
        self._hold(weight.tensors())

    def pack(self, isa: str, activations: str, shared: SharedInputs, mapped: Sequence[Range] = ()) -> str | None:
        """Hold the weight packed for an instruction set, and let go of the stored tensors.

        activations: "a8" or "a16". shared: of all modules that may receive the same tensor. mapped: `mapped_files()`, to
        give back what is read in place. Returns why this weight cannot be packed, and then changes nothing.
        """
        self.unpack()
        weight = self.stored()
        reason = misfit(weight, isa)
        if reason is None:
            self.packed = PackedLinear(weight, isa, activations, shared, self.looked_up)
            del weight
            for part in self._parts():
                part.release(mapped)
        return reason

    def unpack(self) -> None:
        """Hold the stored tensors again, if the weight is packed."""
        if self.packed is not None:
            tensors = self.packed.tensors()
            self.packed = None
            self._hold(tensors)

    def _hold(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            group, _, last = name.rpartition(".")
            if group:
                self._modules[group].register_buffer(last, tensor)  # type: ignore[union-attr]

    def _parts(self) -> list[StoredTensors]:
        return [part for part in self.children() if isinstance(part, StoredTensors)]

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        if self.packed is not None and fn(self.weight).device.type != "cpu":
            self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination |= {prefix + name: tensor for name, tensor in self.packed.tensors().items()}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"out={self.shape[0]}, in={self.shape[1]}, choice={self.choice}"


class QuantLinear(QuantModule):
    """y = x Ŵᵀ + bias for a stored weight."""

    def __init__(
        self,
        choice: Choice,
        shape: Shape,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(choice, shape, dtype, device)
        self.in_features, self.out_features = shape[1], shape[0]
        self.bias = (
            nn.Parameter(torch.empty(shape[0], dtype=dtype, device=device), requires_grad=False) if bias else None
        )

    @classmethod
    def from_stored(cls, weight: StoredWeight) -> "QuantLinear":
        module = cls(weight.choice, weight.shape, bias=weight.bias is not None, device=weight.device)
        module.fill(weight)
        if weight.bias is not None:
            module.bias = nn.Parameter(weight.bias, requires_grad=False)
        return module

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return self.multiply(x, self.bias)


class TiedLinear(nn.Module):
    """A head that multiplies with the stored weight of its embedding; it has no tensors of its own."""

    embedding: "QuantEmbedding"

    def __init__(self, embedding: "QuantEmbedding", bias: nn.Parameter | None = None) -> None:
        super().__init__()
        # Not a child, so that the tensors are saved, counted and moved once.
        object.__setattr__(self, "embedding", embedding)
        self.in_features, self.out_features = embedding.shape[1], embedding.shape[0]
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        return self.embedding.weight

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        # A device map may put head and embedding on different devices: transformers sees no tie between them.
        return self.embedding.multiply(x.to(self.weight.device), self.bias).to(x.device)


class QuantEmbedding(QuantModule):
    """Row lookup in a stored weight [vocabulary, in].

    `multiplier` is what the replaced module multiplies its rows with. A tensor is rounded to the rows' dtype first, as
    Gemma does with √hidden; a number is not.
    """

    looked_up = True

    def __init__(
        self,
        choice: Choice,
        shape: Shape,
        padding_idx: int | None = None,
        multiplier: float | Tensor = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(choice, shape, dtype, device)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = padding_idx
        self.multiplier = multiplier

    @classmethod
    def from_stored(cls, weight: StoredWeight, multiplier: float | Tensor = 1.0) -> "QuantEmbedding":
        module = cls(weight.choice, weight.shape, multiplier=multiplier, device=weight.device)
        module.fill(weight)
        return module

    def forward(self, ids: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        rows = reference.lookup(ids, self.packed or self.stored()).to(self.weight.dtype)
        if isinstance(self.multiplier, Tensor):
            return rows * self.multiplier.to(rows.dtype)
        return rows if self.multiplier == 1.0 else rows * self.multiplier


def use_kernels(model: nn.Module, kernels: str | None = None, isa: str | None = None) -> dict[str, str]:
    """Pack all stored linears of a model, and embeddings that its head multiplies with, for the CPU kernels; or unpack them.

    kernels: "a16" and "a8" round activations to 15 or 8 bits per token and group and compute in integers; "reference"
    decodes weights tile by tile and multiplies in floating point, as verification does, and runs on every device. By default
    what the environment variable BITBUDGET_KERNELS says, else "a16".
    isa: an instruction set of `supported_isas()`, by default the fastest.

    Returns the linears that stay on the reference kernels although others were asked for, with the reason.

    Raises:
        InputError: no such kernels or instruction set.
    """
    kernels = chosen_kernels(kernels)
    modules = dict(multiplying(model))
    if kernels == "reference":
        for module in modules.values():
            module.unpack()
        return {}
    chosen = isa or best_isa()
    if chosen is None:
        return dict.fromkeys(modules, "the package has no compiled kernels here")
    if chosen not in supported_isas():
        raise InputError(f"This machine has no kernels for {chosen!r}, only for {', '.join(supported_isas())}.")
    shared, mapped = SharedInputs(), mapped_files()
    reasons = {name: module.pack(chosen, kernels, shared, mapped) for name, module in modules.items()}
    return_freed_memory()
    return {name: reason for name, reason in reasons.items() if reason}


def chosen_kernels(kernels: str | None = None) -> str:
    """The kernels that `use_kernels` takes. Raises InputError if there are no such."""
    chosen = kernels or os.environ.get("BITBUDGET_KERNELS") or DEFAULT_KERNELS
    if chosen not in KERNELS:
        raise InputError(f"There are no kernels {chosen!r}. Choose one of {', '.join(KERNELS)}.")
    return chosen


def packs(device: torch.device, kernels: str | None = None) -> bool:
    """Whether a model that runs on a device with these kernels packs its weights, where they are compiled; see `use_kernels`."""
    return device.type == "cpu" and chosen_kernels(kernels) != "reference"


def multiplying(model: nn.Module) -> Iterator[tuple[str, QuantModule]]:
    """Linears, and embeddings that a head multiplies with. An embedding of its own is only looked up, where it was read."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            yield name, module
        elif isinstance(module, TiedLinear):
            yield name, module.embedding


def _runs_packed(x: Tensor) -> bool:
    """The packed kernels have no gradient, and no more digits than fp32."""
    return x.dtype in RUN_IN and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())
