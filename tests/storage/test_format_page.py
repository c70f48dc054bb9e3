"""docs/format.md is enough to write a reader: this one knows nothing else, and decodes what we write bit for bit.

Everything between the two lines uses numpy, json and struct alone.
"""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitbudget.checkpoint.native import NativeConfig
from bitbudget.checkpoint.write import ShardWriter, plan_shards
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, Shape, StoredWeight, TensorSpec

# ------------------------------------------------------------------------------------- the independent reader

ITEMS = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "U16": "<u2", "U8": "u1", "BF16": "<u2"}


def read_file(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> dtype in the header and the array; BF16 as its 16 bits."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = entry["dtype"], np.frombuffer(raw[start:end], ITEMS[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def widened(stored: tuple[str, np.ndarray]) -> np.ndarray:
    dtype, array = stored
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    number = int.from_bytes(words.astype("<i4").tobytes(), "little")
    return np.array([number >> (place * bits) & (2**bits - 1) for place in range(count)], np.int64)


def share(text: str, total: int) -> int:
    if not text.endswith("%"):
        return min(int(text), total)
    whole, _, decimals = text[:-1].partition(".")
    millionths = int(whole) * 10**6 + int(decimals.ljust(6, "0") if decimals else 0)
    return (2 * millionths * total + 10**8) // (2 * 10**8)


def table(tensors: dict[str, Any], name: str, codec: str, shape: tuple[int, int]) -> np.ndarray:
    rows, groups = shape
    if codec in ("fp16", "bf16", "fp32", "byte"):
        expected = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "byte": "U8"}[codec]
        assert tensors[name][0] == expected and tensors[name][1].shape == shape
        return widened(tensors[name])
    if codec.startswith("u"):
        return stream(tensors[name][1], int(codec[1:]), rows * groups).reshape(shape).astype(np.float32)
    bits, high, wide, offset = re.fullmatch(r"bilevel\((\d),(\d+)x(\d+)(,offset)?\)", codec).groups()  # type: ignore[union-attr]
    codes = stream(tensors[name + "_codes"][1], int(bits), rows * groups).reshape(shape).astype(np.float32)
    i, j = np.arange(rows)[:, None] // int(high), np.arange(groups)[None] // int(wide)
    values = widened(tensors[name + "_step"])[i, j] * codes
    return values + widened(tensors[name + "_base"])[i, j] if offset else values


def dense_part(tensors: dict[str, Any], name: str, text: str, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = shape
    first, *settings = text.split(":")
    bits, symmetric = int(first[3]), first.endswith("s")
    known = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    along_rows = "out" in settings
    length = rows if along_rows else columns
    group = next((int(setting[1:]) for setting in settings if re.fullmatch(r"g\d+", setting)), length)
    assert length % group == 0
    size = (rows // group, columns) if along_rows else (rows, columns // group)
    i, j = np.arange(rows)[:, None], np.arange(columns)[None]
    place = (i // group, j) if along_rows else (i, j // group)
    scale = table(tensors, f"{name}.scale", known.get("scale", "fp16"), size)[place]
    kind = known.get("zero", "none" if symmetric else "int")
    if kind in ("none", "half"):
        zero = np.float32(2 ** (bits - 1) if kind == "none" else (2**bits - 1) / 2)
    else:
        default = "fp16" if kind == "real" else f"u{bits}"
        zero = table(tensors, f"{name}.zero", known.get("zeros", default), size)[place]
    codes = np.stack([stream(row, bits, columns) for row in tensors[f"{name}.codes"][1]]).astype(np.float32)
    return scale * (codes - zero)


def decode(tensors: dict[str, Any], text: str, shape: tuple[int, int]) -> np.ndarray:
    """W of one layer; `tensors` are named relative to it."""
    assert tensors["weight"] == ("BF16", tensors["weight"][1]) and tensors["weight"][1].shape == (0,)
    body, _, outliers = text.split("/")[0].partition("+outliers:")
    parts = body.split("|")
    weight = np.zeros(shape, np.float32)
    free = shape[0]
    for number, part in enumerate(parts):
        settings, _, count = part.partition("*")
        rows = min(share(count, shape[0]), free) if count else free
        free -= rows
        name = f"dense{number}" if len(parts) > 1 else "dense"
        where = tensors[f"{name}.rows"][1].astype(np.int64) if len(parts) > 1 else np.arange(shape[0])
        assert len(where) == rows
        weight[where] += dense_part(tensors, name, settings, (rows, shape[1]))
    if outliers:
        values = widened(tensors["outliers.values"])
        assert len(values) == share(outliers.split(":")[0], math.prod(shape))
        pointers, columns = tensors["outliers.row_pointers"][1], tensors["outliers.columns"][1]
        for row in range(shape[0]):
            for entry in range(pointers[row], pointers[row + 1]):
                weight[row, columns[entry]] += values[entry]
    return weight


def read_folder(folder: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format_version"]) == ("bitbudget", 1)
    tensors = read_file(folder / "model.safetensors")
    decoded = {}
    for layer, place in config["layers"].items():
        own = {name.removeprefix(layer + "."): value for name, value in tensors.items() if name.startswith(layer + ".")}
        decoded[layer] = decode(own, config["choices"][place], shapes[layer])
    return decoded


# --------------------------------------------------------------------------------------------------- the tests

CHOICES = [
    *(f"int{bits}{sign}{group}" for bits in (2, 3, 4, 5, 6, 8) for sign in ("", "s") for group in ("", ":g8")),
    "int4:out",
    "int3s:g4:out",
    "int4:g8:zero=half",
    "int3:zero=real",
    "int3:g8:zero=real:zeros=bf16:scale=fp32",
    "int5:g8:zero=real:zeros=u6",
    "int5:g8:zeros=byte:scale=bf16",
    "int2:g4:zeros=u7",
    "int3:g4:scale=bilevel(6,16x1)",
    "int3:g4:out:scale=bilevel(5,3x7,offset)",
    "int4:g4:zeros=bilevel(4,3x5,offset):scale=bilevel(3,8x2)",
    "int4:g8:zero=real:zeros=bilevel(3,16x1,offset):scale=bilevel(3,16x1,offset)+outliers:1%",
    "int2:g8+outliers:0.5%",
    "int2:g8+outliers:0.0001%",
    "int2:g8+outliers:100%:fp32",
    "int4+outliers:17:bf16",
    "int8:g8*10%|int4:g8",
    "int8:g8*12.5%|int6s*3|int3:out:g1*4|int2:g24:zero=half+outliers:2%",
    "int4:g4:out*8|int3s:g5:out",
]
SHAPE = (28, 24)


def write_folder(folder: Path, weights: dict[str, StoredWeight]) -> None:
    """As `quantize` does: planned by the choice's text, float16 that turned into bfloat16 declared so."""
    config = NativeConfig({layer: weight.choice for layer, weight in weights.items()})
    (folder / "config.json").write_text(json.dumps({"quantization_config": config.to_dict()}))
    units = tuple(
        tuple(
            TensorSpec(
                f"{layer}.{name}",
                torch.float16 if name.endswith(("scale", "values")) and tensor.itemsize == 2 else tensor.dtype,
                tuple(tensor.shape),
            )
            for name, tensor in weight.tensors().items()
        )
        for layer, weight in weights.items()
    )
    (shard,) = plan_shards(units, 2**40)
    with ShardWriter(folder, shard) as writer:
        for layer, weight in weights.items():
            for name, tensor in weight.tensors().items():
                writer.write(f"{layer}.{name}", tensor)


def test_the_independent_reader_decodes_the_same_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, shapes = {}, {}
    for number, text in enumerate(CHOICES):
        for kind, factor in (("plain", 1.0), ("tiny", 1e-7), ("shifted", 1.0)):
            original = factor * torch.randn(SHAPE, generator=generator) + (4 if kind == "shifted" else 0)
            original[3] = 0
            layer = f"model.layers.{number}.{kind}"
            weights[layer], shapes[layer] = nearest(original, Choice.parse(text)), SHAPE
    write_folder(tmp_path, weights)
    decoded = read_folder(tmp_path, shapes)
    assert decoded.keys() == weights.keys()
    for layer, weight in weights.items():
        ours = weight.dequantize().numpy()
        assert np.array_equal(decoded[layer].view(np.uint32), ours.view(np.uint32)), f"{layer}: {weight.choice}"


def test_wide_layers_have_wide_indices(tmp_path: Path) -> None:
    shape: Shape = (3, 65_544)
    weight = nearest(torch.randn(shape, generator=torch.Generator().manual_seed(1)), Choice.parse("int2:g8+outliers:9"))
    write_folder(tmp_path, {"wide": weight})
    assert read_file(tmp_path / "model.safetensors")["wide.outliers.columns"][0] == "I32"
    assert np.array_equal(read_folder(tmp_path, {"wide": shape})["wide"], weight.dequantize().numpy())


def test_the_header_has_room_for_bfloat16(tmp_path: Path) -> None:
    text = "int4:g8"
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    sizes = []
    for name, factor in (("half", 1.0), ("brain", 1e-9)):
        (tmp_path / name).mkdir()
        weight = nearest(weights * factor, Choice.parse(text))
        assert str(weight.choice) == text + (":scale=bf16" if name == "brain" else "")
        write_folder(tmp_path / name, {"layer": weight})
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
    assert sizes[0] == sizes[1]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"


def test_the_example_of_the_page() -> None:
    weights = torch.tensor([[-1, 0.5, 2.5, 0, 0, 0.25, 1.75, 1], [-3.5, -3, 0, -0.5, -2, 0, 1.5, 9]])
    weight = nearest(weights, Choice.parse("int3:g4+outliers:1"))
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` (\w+) (\[[\d, ]+\]) \| `([0-9a-f ]+)` \|", page, re.MULTILINE)
    assert {name for name, *_ in rows} == weight.tensors().keys() - {"weight"}
    named = {}
    for name, dtype, shape, octets in rows:
        tensor = weight.tensors()[name]
        assert tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == bytes.fromhex(octets)
        assert list(tensor.shape) == json.loads(shape)
        named[name] = dtype, np.frombuffer(bytes.fromhex(octets), ITEMS[dtype]).reshape(json.loads(shape))
    named["weight"] = "BF16", np.zeros(0, np.uint16)
    assert np.array_equal(decode(named, "int3:g4+outliers:1", (2, 8)), weights.numpy())


@pytest.mark.parametrize("text", ["int4:g128", "int8:g64"])
def test_the_config_of_the_page(text: str) -> None:
    block = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    config = NativeConfig.from_dict(json.loads("{" + block[1] + "}")["quantization_config"])
    assert text in map(str, config.layers.values())
