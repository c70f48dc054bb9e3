# Addresses and sizes in bytes; instruction sets and activation formats are numbers of cpu/kernels.h. Raises ValueError.

def supported(isa: int) -> bool: ...
def best() -> int: ...
def valid(isa: int, rows: int, columns: int, group: int, bits: int, parameters: int) -> bool: ...
def packed_size(isa: int, rows: int, columns: int, group: int, bits: int, parameters: int) -> int: ...
def pack(
    isa: int,
    rows: int,
    columns: int,
    group: int,
    bits: int,
    parameters: int,
    codes: int,
    codes_bytes: int,
    scale: int,
    zero: int,
    table_bytes: int,
    packed: int,
    packed_bytes: int,
    threads: int,
) -> None: ...
def unpack(
    isa: int,
    rows: int,
    columns: int,
    group: int,
    bits: int,
    parameters: int,
    packed: int,
    packed_bytes: int,
    codes: int,
    codes_bytes: int,
    scale: int,
    zero: int,
    table_bytes: int,
    threads: int,
) -> None: ...
def lookup(
    isa: int,
    rows: int,
    columns: int,
    group: int,
    bits: int,
    parameters: int,
    packed: int,
    packed_bytes: int,
    ids: int,
    ids_bytes: int,
    y: int,
    y_bytes: int,
    threads: int,
) -> None: ...
def exact_parameters(scale: int, zero: int, bytes: int) -> int: ...
def packed_outliers_size(
    rows: int, pointers: int, pointers_bytes: int, columns: int, columns_bytes: int, values: int, values_bytes: int
) -> int: ...
def pack_outliers(
    rows: int,
    pointers: int,
    pointers_bytes: int,
    columns: int,
    columns_bytes: int,
    values: int,
    values_bytes: int,
    packed: int,
    packed_bytes: int,
) -> None: ...
def are_outliers(rows: int, columns: int, packed: int, bytes: int) -> bool: ...

class Inputs:
    def __init__(self) -> None: ...
    @property
    def ways(self) -> int: ...
    def dequantize(
        self, isa: int, n: int, columns: int, group: int, activations: int, x: int, x_bytes: int
    ) -> None: ...

class Weight:
    def __init__(self, isa: int, columns: int, outputs: int) -> None: ...
    def add(
        self,
        rows: int,
        group: int,
        bits: int,
        parameters: int,
        packed: int,
        packed_bytes: int,
        order: int,
        order_bytes: int,
        outliers: int,
        outliers_bytes: int,
    ) -> None: ...
    def multiply(
        self,
        inputs: Inputs,
        x: int,
        x_bytes: int,
        n: int,
        stride: int,
        activations: int,
        bias: int,
        bias_bytes: int,
        y: int,
        y_bytes: int,
        threads: int,
    ) -> None: ...

def add_outliers(
    x: int,
    x_bytes: int,
    n: int,
    stride: int,
    columns: int,
    row_pointers: int,
    columns_of: int,
    values: int,
    count: int,
    rows: int,
    order: int,
    order_bytes: int,
    y: int,
    y_bytes: int,
    out: int,
    threads: int,
) -> None: ...
def forget_pages(address: int, bytes: int) -> None: ...
def read(address: int, bytes: int, threads: int, side_by_side: bool) -> int: ...
