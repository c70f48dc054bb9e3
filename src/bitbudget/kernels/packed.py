"""A stored weight repacked for the CPU kernels, its exact inverse, and the product with it.

Packing is apart from the stored format: codes are laid out for one instruction set, with the decoded scale and zero of
every group beside them. The product rounds activations to 8 bits per token and group (`a8`), or to 15 with a second pass
over the residual (`a16`); integers are summed exactly within a group, groups in fp32.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bitbudget.grids import BF16, FP16, FP32, Grid
from bitbudget.kernels.extension import ISAS
from bitbudget.kernels.inputs import ACTIVATIONS, SharedInputs
from bitbudget.kernels.operators import packed_linear
from bitbudget.kernels.packed_parts import (
    ENTRY_BYTES,
    ORDER_BYTES,
    PACKED_ENTRY_BYTES,
    PackedDense,
    PackedOutliers,
    found_again,
    layout_of,
)
from bitbudget.kernels.products import (
    LARGEST_COLUMNS,
    OUTLIERS_SPARE_BYTES,
    CodeLayout,
    PackedPart,
    Weight,
    add_sparse,
    is_sparse_matrix,
)
from bitbudget.kernels.tensors import StoredTensors
from bitbudget.storage import Choice, DensePart, OutlierPart, Part, Shape, StoredWeight

# Groups are padded to 32 columns and rows to 16. A packed part may take so many times the stored bytes, and so many more.
MOST_GROWTH, FREE_GROWTH = 1.5, 64 << 10


@dataclass(frozen=True, slots=True)
class Ready:
    """All that a product needs, each a plain attribute. When its turn comes, the weights of all other layers have gone through
    the caches since: every object that is looked for then comes from memory, which takes longer than the work done with it.

    activations: the number of their format. scale_in, scale_out: of inputs and of outputs. sparse: row pointers, columns, values
    and order of outliers that no dense part holds.
    """

    weight: Weight
    outputs: int
    activations: int
    shared: SharedInputs
    scale_in: Tensor | None
    scale_out: Tensor | None
    sparse: tuple[Tensor, Tensor, Tensor, Tensor | None] | None

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Ŵᵀ + bias, fp32; bias fp32."""
        if self.scale_in is not None:
            x = x * self.scale_in
        inputs = self.shared.get(x)
        y = torch.empty(*x.shape[:-1], self.outputs)
        self.weight.multiply(x, inputs, self.activations, bias if self.scale_out is None else None, y)
        if self.sparse is not None:
            add_sparse(inputs.rows(x), *self.sparse, y.view(-1, self.outputs))
        return y if self.scale_out is None else _scaled(y, self.scale_out, bias)


class PackedLinear(nn.Module):
    """All of a stored weight [out, in] but its bias, packed for the CPU. It shares no memory with the stored tensors."""

    input_map: StoredTensors
    output_map: StoredTensors

    def __init__(
        self, weight: StoredWeight, isa: str, activations: str, shared: SharedInputs, looked_up: bool = False
    ) -> None:
        """activations: one of `ACTIVATIONS`. looked_up: rows are going to be decoded, as an embedding's are, so outliers have to
        be at hand by themselves.
        """
        super().__init__()
        self.shape, self.isa, self.shared = weight.shape, ISAS.index(isa), shared
        self.activations = ACTIVATIONS.index(activations)
        self.names = weight.names
        self.parts: list[PackedDense] = []
        self.residual: PackedOutliers | None = None
        for name, part in zip(weight.names, weight.parts, strict=True):
            assert isinstance(part, DensePart | OutlierPart)
            order = _order(part, weight.output_map.get("rows"))
            if isinstance(part, DensePart):
                self.parts.append(PackedDense(part, self.isa, order))
                self.add_module(name, self.parts[-1])
            else:
                self.residual = PackedOutliers(part, order, [] if looked_up else self.parts)
        for group, tensors in (("input_map", weight.input_map), ("output_map", weight.output_map)):
            self.add_module(group, StoredTensors())
            for name, tensor in tensors.items():
                self.get_submodule(group).register_buffer(name, tensor.clone(), persistent=False)
        self._ready: Ready | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(tensor.nbytes for tensor in self.buffers())

    @property
    def addends(self) -> "list[PackedDense | PackedOutliers]":
        """The parts in the order of the choice."""
        return [*self.parts, *([] if self.residual is None else [self.residual])]

    def tensors(self) -> dict[str, Tensor]:
        """All stored tensors but the bias, named relative to the layer, bit for bit as they were."""
        groups = {name: part.stored() for name, part in zip(self.names, self.addends, strict=True)}
        groups |= {name: dict(self.get_submodule(name).named_buffers()) for name in ("input_map", "output_map")}
        return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def dequantize(self, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n in"]:
        """Some rows of the weight, fp32, as `StoredWeight.dequantize` gives them."""
        tile = torch.zeros(len(rows), self.shape[1])
        for part in self.addends:
            part.add_to(tile, rows)
        return tile

    def forward(self, x: Float[Tensor, "*batch in"], bias: Tensor | None) -> Float[Tensor, "*batch out"]:
        """In x's dtype."""
        wide = None if bias is None else bias.float()
        multiply = self._traced if torch.compiler.is_compiling() else (self._ready or self._prepare()).multiply
        y = multiply(x, wide)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def _prepare(self) -> "Ready":
        """Once, and again where tensors were exchanged."""
        residual, sparse = self.residual, None
        if residual is not None and not residual.within:
            columns, values = residual.get_buffer("columns"), residual.get_buffer("values")
            sparse = residual.row_pointers, columns, values, residual.order
        parts = [PackedPart(part.layout, part.packed, part.order, part.sparse) for part in self.parts]
        weight = Weight(parts, self.shape[0])
        self._ready = Ready(weight, self.shape[0], self.activations, self.shared, *self._scales(), sparse)
        return self._ready

    def _scales(self) -> tuple[Tensor | None, Tensor | None]:
        return self.input_map._buffers.get("scale"), self.output_map._buffers.get("scale")

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._ready = None
        return super()._apply(fn, recurse)

    def _traced(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same, as a graph has it."""
        packed, layouts, outliers, orders = self.operands()
        scale_in, scale_out = self._scales()
        inside, within = x if scale_in is None else x * scale_in, bias if scale_out is None else None
        y: Tensor = packed_linear(
            inside, packed, layouts, outliers, orders, within, self.shape[1], self.shape[0], self.isa, self.activations
        )
        return y if scale_out is None else _scaled(y, scale_out, bias)

    def operands(self) -> tuple[list[Tensor], list[int], list[Tensor], list[Tensor]]:
        """The weight as the operator takes it: packed, layouts, outliers, orders."""
        shapes, residual = [part.layout for part in self.parts], self.residual
        layouts = [number for of in shapes for number in (of.rows, of.group, of.bits, of.parameters)]
        outliers: list[Tensor] = []
        if residual is not None and residual.within:
            outliers = [part.get_buffer("sparse") for part in self.parts]
        elif residual is not None:
            outliers = [residual.row_pointers, residual.get_buffer("columns"), residual.get_buffer("values")]
        own = torch.empty(0, dtype=torch.int32)
        orders = [own if part.order is None else part.order for part in self.addends]
        return [part.packed for part in self.parts], layouts, outliers, orders


def _scaled(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return y * scale if bias is None else y * scale + bias


def misfit(weight: StoredWeight, isa: str) -> str | None:
    """Why a weight cannot be packed for an instruction set, in a few words; None if it can."""
    if weight.device.type != "cpu":
        return f"it is on the device {weight.device}"
    if weight.choice.activation:
        return f"its activations are rounded to {weight.choice.activation}"
    reasons = (_part_misfit(part, weight, isa) for part in weight.parts)
    return next((reason for reason in reasons if reason), None) or _rows_misfit(weight)


def _part_misfit(part: Part, weight: StoredWeight, isa: str) -> str | None:
    if isinstance(part, OutlierPart):
        pointers, columns = part.stored["row_pointers"], part.stored["columns"].to(torch.int32)
        fits = is_sparse_matrix(pointers, columns, len(part.stored["values"]), weight.shape[1])
        return None if fits else "its outliers are no sparse matrix"
    if not isinstance(part, DensePart):
        return f"it has a {type(part).__name__}"
    if part.format.grid.axis != "in":
        return "its groups run along rows"
    layout = layout_of(part, ISAS.index(isa), 0)
    if not layout.exists:
        return f"there is no kernel for {part.format} and {part.shape[1]} columns"
    stored = sum(tensor.nbytes for tensor in part.stored.values())
    if layout.nbytes > MOST_GROWTH * stored + FREE_GROWTH:
        return f"its groups, each padded to 32 columns, would take {layout.nbytes:,} bytes in place of {stored:,}"
    return None


def _rows_misfit(weight: StoredWeight) -> str | None:
    """A product writes every output once; in a damaged file rows may be missing or outside."""
    dense = [part for part in weight.parts if isinstance(part, DensePart)]
    indices = [part.stored["rows"].to(torch.int64) for part in dense if "rows" in part.stored]
    taken = [torch.cat(indices)] if indices else []
    taken += [weight.output_map["rows"].to(torch.int64)] if "rows" in weight.output_map else []
    every = torch.arange(weight.shape[0])
    return None if all(torch.equal(rows.sort().values, every) for rows in taken) else "its row indices are not all rows"


def _order(part: DensePart | OutlierPart, permutation: Tensor | None) -> Tensor | None:
    """The output of every row of a part."""
    own = part.stored.get("rows")
    if permutation is None:
        return None if own is None else own.to(torch.int32, copy=True)
    wide = permutation.to(torch.int32, copy=True)
    return wide if own is None else wide[own.to(torch.int64)]


def growth(choice: Choice, shape: Shape) -> int:
    """Bytes that a weight [out, in] takes packed beyond those of its stored tensors, at most; 0 where it is not packed."""
    total = 0
    for part, rows in zip(choice.dense, choice.row_counts(shape[0]), strict=True):
        grid = part.grid
        layout = CodeLayout(0, rows, shape[1], grid.group or shape[1], grid.bits, _parameters(grid))
        if choice.activation or grid.axis != "in" or not layout.exists:
            return 0
        again = ("codes", *found_again(grid))
        released = sum(spec.nbytes for spec in part.specs((rows, shape[1])) if spec.name in again)
        indexed = rows < shape[0] or choice.output_map == "permute"
        total += layout.nbytes - released + (ORDER_BYTES * rows if indexed else 0)
    if choice.outliers:
        stored = sum(spec.nbytes for spec in choice.outliers.specs(shape))
        entries = choice.outliers.count.of(shape[0] * shape[1])
        packed = choice.outliers.values == FP16 and shape[1] <= LARGEST_COLUMNS
        each = PACKED_ENTRY_BYTES if packed else ENTRY_BYTES
        total += each * entries + ORDER_BYTES * 3 * (shape[0] + 1) + OUTLIERS_SPARE_BYTES * len(choice.dense) - stored
    return max(0, total)


def _parameters(grid: Grid) -> int:
    """The format that holds any parameters of a grid."""
    if grid.zero_codec == FP32 or grid.scale not in (FP16, BF16):
        return 0
    return 1 if grid.scale == FP16 else 2
