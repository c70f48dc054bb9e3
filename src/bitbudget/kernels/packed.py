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
from bitbudget.grids.codecs import Byte, PackedInt
from bitbudget.grids.codecs import Float as FloatCodec
from bitbudget.kernels.extension import ISAS
from bitbudget.kernels.inputs import ACTIVATIONS, InputFormat, SharedInputs
from bitbudget.kernels.operators import packed_linear
from bitbudget.kernels.products import (
    CodeLayout,
    Weight,
    add_sparse,
    exact_parameters,
    is_sparse_matrix,
    lookup,
    pack,
    pack_outliers,
    unpack,
    unpack_outliers,
)
from bitbudget.kernels.tensors import StoredTensors
from bitbudget.storage import Choice, DensePart, OutlierPart, Part, Shape, StoredWeight
from bitbudget.storage.parts import places_in
from bitbudget.storage.tensors import index_dtype

# Groups are padded to 32 columns and rows to 16. A packed part may take so many times the stored bytes, and so many more.
MOST_GROWTH, FREE_GROWTH = 1.5, 64 << 10
ENTRY_BYTES, ORDER_BYTES = 8, 4  # column and value of an outlier; the output of a row


class PackedDense(StoredTensors):
    """Codes, scales and zeros of one part; `order` is the output of each of its rows, int32, where that is not its number."""

    packed: Tensor
    order: Tensor | None
    sparse: Tensor | None  # packed outliers of its rows

    def __init__(self, part: DensePart, isa: int, order: Tensor | None) -> None:
        super().__init__()
        grid = self.grid = part.format.grid
        parameters = part.parameters(torch.arange(part.shape[0]))
        scale = parameters.scale.contiguous()
        zero = torch.full_like(scale, grid.fixed_zero) if parameters.zero is None else parameters.zero.contiguous()
        layout = self.layout = layout_of(part, isa, exact_parameters(scale, zero))
        self.formats = [InputFormat(isa, layout.columns, layout.group, number) for number in range(len(ACTIVATIONS))]
        self.register_buffer(
            "packed", pack(self.layout, part.stored["codes"].contiguous(), scale, zero), persistent=False
        )
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("sparse", None, persistent=False)
        self.kept = tuple(name for name in part.stored if name not in {"codes", *found_again(grid)})
        for name in self.kept:  # copied, so that no file stays in memory for them
            self.register_buffer(f"kept_{name}", part.stored[name].clone(), persistent=False)

    def stored(self) -> dict[str, Tensor]:
        """The part's stored tensors, bit for bit."""
        codes, scale, zero = unpack(self.layout, self.packed)
        again = found_again(self.grid)
        found = {"codes": codes} | {name: self.get_buffer(f"kept_{name}") for name in self.kept}
        if "scale" in again:
            found |= {"scale" + suffix: tensor for suffix, tensor in self.grid.scale.tensors(scale).items()}
        if "zero" in again and self.grid.zeros is not None:
            found |= {"zero" + suffix: tensor for suffix, tensor in self.grid.zeros.tensors(zero).items()}
        return found

    def add_to(self, tile: Tensor, rows: Tensor) -> None:
        """Adds this part's values of some rows of the weight, int64, to an fp32 tile [n, in]."""
        index = self._buffers.get("kept_rows")
        if index is None:
            tile += lookup(self.layout, self.packed, rows)
            return
        own, mine = places_in(index, rows)
        tile.index_add_(0, mine, lookup(self.layout, self.packed, own))


class PackedOutliers(StoredTensors):
    """A sparse residual. Where they fit, its entries are packed with the dense parts whose rows they are in (`within`), and are
    added in the same product; else they are CSR in the numbers that the kernel of their own reads, int32 and fp32.
    """

    row_pointers: Tensor
    order: Tensor | None

    def __init__(self, part: OutlierPart, order: Tensor | None, within: "list[PackedDense]") -> None:
        super().__init__()
        self.format, self.shape, self.within = part.format, part.shape, within
        self.register_buffer("row_pointers", part.stored["row_pointers"].clone(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        columns = part.stored["columns"].to(torch.int32, copy=True)
        values = part.stored["values"].to(torch.float32, copy=True)
        made = [self._packed(dense, columns, values) for dense in within]
        if not made or any(packed is None for packed in made):
            self.within = []
            self.register_buffer("columns", columns, persistent=False)
            self.register_buffer("values", values, persistent=False)
        for dense, packed in zip(self.within, made, strict=False):
            dense.register_buffer("sparse", packed, persistent=False)

    def _packed(self, dense: "PackedDense", columns: Tensor, values: Tensor) -> Tensor | None:
        pointers, entries = self._entries(dense)
        most = ENTRY_BYTES * len(entries) + ORDER_BYTES * dense.layout.rows
        return pack_outliers(pointers, columns[entries].contiguous(), values[entries].contiguous(), most)

    def _entries(self, dense: "PackedDense") -> tuple[Tensor, Tensor]:
        """Row pointers, int32, of a dense part's rows alone, and the places of their entries in the whole matrix."""
        index, pointers = dense._buffers.get("kept_rows"), self.row_pointers.to(torch.int64)
        rows = torch.arange(dense.layout.rows) if index is None else index.to(torch.int64)
        counts = pointers[rows + 1] - pointers[rows]
        own = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        shift = (pointers[rows] - own[:-1]).repeat_interleave(counts)
        return own.to(torch.int32), torch.arange(int(own[-1])) + shift

    def stored(self) -> dict[str, Tensor]:
        """The part's stored tensors, bit for bit."""
        columns, values = self._matrix()
        return {
            "values": values.to(self.format.values.dtype),
            "columns": columns.to(index_dtype(self.shape[1])),
            "row_pointers": self.row_pointers,
        }

    def _matrix(self) -> tuple[Tensor, Tensor]:
        """Columns and values, int32 and fp32."""
        if not self.within:
            return self.get_buffer("columns"), self.get_buffer("values")
        count = int(self.row_pointers[-1])
        columns, values = torch.empty(count, dtype=torch.int32), torch.empty(count)
        for dense in self.within:
            pointers, entries = self._entries(dense)
            columns[entries], values[entries] = unpack_outliers(pointers, dense.get_buffer("sparse"))
        return columns, values

    def add_to(self, tile: Tensor, rows: Tensor) -> None:
        """Adds the residual of some rows of the weight, int64, to an fp32 tile [n, in]."""
        columns, values = self._matrix()
        tensors = {"row_pointers": self.row_pointers, "columns": columns, "values": values}
        OutlierPart(self.format, self.shape, tensors).add_to(tile, rows)


@dataclass(frozen=True, slots=True)
class ReadyPart:
    """formats: of its inputs, by number of the activations."""

    weight: Weight
    formats: list[InputFormat]
    order: Tensor | None


@dataclass(frozen=True, slots=True)
class Ready:
    """All that a product needs, each a plain attribute. When its turn comes, the weights of all other layers have gone through
    the caches since: every object that is looked for then comes from memory, which takes longer than the work done with it.

    sparse: row pointers, columns, values and order of outliers that no part holds. needs_rows: there are outliers. scales: of
    inputs and of outputs.
    """

    parts: tuple[ReadyPart, ...]
    sparse: tuple[Tensor, Tensor, Tensor, Tensor | None] | None
    needs_rows: bool
    scales: tuple[Tensor | None, Tensor | None]


class PackedLinear(nn.Module):
    """All of a stored weight [out, in] but its bias, packed for the CPU. It shares no memory with the stored tensors."""

    input_map: StoredTensors
    output_map: StoredTensors

    def __init__(self, weight: StoredWeight, isa: str, shared: SharedInputs, looked_up: bool = False) -> None:
        """looked_up: rows are going to be decoded, as an embedding's are, so outliers have to be at hand by themselves."""
        super().__init__()
        self.shape, self.isa, self.shared = weight.shape, ISAS.index(isa), shared
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

    def forward(
        self, x: Float[Tensor, "*batch in"], bias: Tensor | None, activations: int
    ) -> Float[Tensor, "*batch out"]:
        """In x's dtype; activations: the number of their format (`inputs.ACTIVATIONS`)."""
        ready = None if torch.compiler.is_compiling() else self._ready or self._prepare()
        scale_in, scale_out = self._scales() if ready is None else ready.scales
        inside = x if scale_in is None else x * scale_in
        wide = None if bias is None else bias.float()
        within = wide if scale_out is None else None
        if ready is None:
            y: Tensor = self._traced(inside, within, activations)
        else:
            y = self._multiplied(ready, inside, within, activations)
        if scale_out is not None:
            y = y * scale_out if wide is None else y * scale_out + wide
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def _multiplied(self, ready: "Ready", x: Tensor, bias: Tensor | None, activations: int) -> Tensor:
        inputs = self.shared.get(x)
        rows = inputs.rows(x) if ready.needs_rows else None
        y = torch.empty(x.numel() // self.shape[1], self.shape[0])
        for part in ready.parts:
            own = bias if bias is None or part.order is None else bias[part.order]
            part.weight.multiply(inputs.quantized(x, part.formats[activations]), own, y, rows)
        if ready.sparse is not None and rows is not None:
            add_sparse(rows, *ready.sparse, y)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.shape[0])

    def _prepare(self) -> "Ready":
        """Once, and again where tensors were exchanged."""
        residual = self.residual
        outputs, sparse = self.shape[0], None
        if residual is not None and not residual.within:
            columns, values = residual.get_buffer("columns"), residual.get_buffer("values")
            sparse = residual.row_pointers, columns, values, residual.order
        parts = tuple(
            ReadyPart(Weight(part.layout, part.packed, outputs, part.order, part.sparse), part.formats, part.order)
            for part in self.parts
        )
        self._ready = Ready(parts, sparse, residual is not None, self._scales())
        return self._ready

    def _scales(self) -> tuple[Tensor | None, Tensor | None]:
        return self.input_map._buffers.get("scale"), self.output_map._buffers.get("scale")

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._ready = None
        return super()._apply(fn, recurse)

    def _traced(self, x: Tensor, bias: Tensor | None, activations: int) -> Tensor:
        packed, layouts, outliers, orders = self.operands()
        return packed_linear(
            x, packed, layouts, outliers, orders, bias, self.shape[1], self.shape[0], self.isa, activations
        )

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


def layout_of(part: DensePart, isa: int, parameters: int) -> CodeLayout:
    """Of a part whose groups run along columns."""
    grid = part.format.grid
    return CodeLayout(isa, *part.shape, grid.group_length(part.shape), grid.bits, parameters)


def found_again(grid: Grid) -> set[str]:
    """The stored tensors of group parameters that follow from the decoded ones alone."""
    exact = FloatCodec | PackedInt | Byte
    return {name for name, codec in (("scale", grid.scale), ("zero", grid.zeros)) if isinstance(codec, exact)}


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
        total += ENTRY_BYTES * entries + ORDER_BYTES * 3 * (shape[0] + 1) - stored
    return max(0, total)


def _parameters(grid: Grid) -> int:
    """The format that holds any parameters of a grid."""
    if grid.zero_codec == FP32 or grid.scale not in (FP16, BF16):
        return 0
    return 1 if grid.scale == FP16 else 2
