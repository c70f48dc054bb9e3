"""`QuantLinear` and `QuantEmbedding`: modules whose buffers are exactly the stored tensors.

Names and shapes of the buffers equal those of the file, so any loader that fills a state dict loads them. The packed
tensors are all that stays in memory. `weight` is an empty buffer: it is in the file too (see `NativeLayout`), carries
the module's compute dtype, and tells device and dtype to code that looks at `module.weight`.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from bitbudget.kernels import reference
from bitbudget.storage import NATIVE, Choice, Shape, StoredWeight


class StoredTensors(nn.Module):
    """The tensors of one part. They follow the module's device, never its dtype: scales must not be rounded again."""

    def __init__(self) -> None:
        super().__init__()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        for name, tensor in self._buffers.items():
            if tensor is not None:
                moved = fn(tensor)
                self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self


class QuantModule(nn.Module):
    """A weight [out, in] held as the tensors of its choice."""

    weight: Tensor

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

    def stored(self, bias: Tensor | None = None) -> StoredWeight:
        """The weight, sharing the buffers."""
        tensors = {
            f"{group}.{name}": tensor
            for group, part in self._modules.items()
            if isinstance(part, StoredTensors)
            for name, tensor in part.named_buffers()
        }
        return StoredWeight.from_tensors(self.choice, self.shape, tensors, bias)

    def fill(self, weight: StoredWeight) -> None:
        """Take over the tensors of a weight of the same choice and shape, without a copy."""
        for name, tensor in weight.tensors().items():
            group, _, last = name.rpartition(".")
            if group:
                self._modules[group].register_buffer(last, tensor)  # type: ignore[union-attr]

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
        return reference.linear(x, self.stored(self.bias))


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
        return reference.linear(x.to(self.weight.device), self.embedding.stored(self.bias)).to(x.device)


class QuantEmbedding(QuantModule):
    """Row lookup in a stored weight [vocabulary, in].

    `multiplier` is what the replaced module multiplies its rows with. A tensor is rounded to the rows' dtype first, as
    Gemma does with √hidden; a number is not.
    """

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
        rows = reference.lookup(ids, self.stored()).to(self.weight.dtype)
        if isinstance(self.multiplier, Tensor):
            return rows * self.multiplier.to(rows.dtype)
        return rows if self.multiplier == 1.0 else rows * self.multiplier
