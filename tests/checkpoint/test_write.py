"""Writing: sizes known beforehand to the byte, files the format's own library reads, failures that leave nothing."""

import errno
import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from bitbudget.checkpoint import write
from bitbudget.checkpoint.header import DTYPES
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import Shard, ShardWriter, index_json, plan_shards, write_atomic
from bitbudget.errors import OutputError
from bitbudget.storage.tensors import TensorSpec
from checkpoint.samples import random_tensor

TWO = (TensorSpec("a", torch.float16, (2, 3)), TensorSpec("b", torch.int32, (3,)))


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tensor.dtype, tuple(tensor.shape))


def fail(error: BaseException):
    def function(*_: object, **__: object) -> None:
        raise error

    return function


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text('abc.é"\n', min_size=1)
dtypes = st.sampled_from(list(DTYPES.values()))
# What TensorSpec takes, not TensorSpec itself: checking its types draws random numbers, which no strategy may do.
descriptions = st.tuples(names, dtypes, shapes)
drawn_units = st.lists(st.lists(descriptions, max_size=4), max_size=6).filter(
    lambda drawn: len({name for unit in drawn for name, *_ in unit}) == sum(map(len, drawn))
)


@given(
    contents=st.dictionaries(names, st.builds(random_tensor, dtypes, shapes, st.integers(0, 999)), max_size=6),
    limit=st.integers(1, 200),
    order=st.randoms(use_true_random=False),
)
def test_round_trip_in_any_order_and_agreement_with_the_format_library(
    contents, limit, order, tmp_path_factory, same_bytes
):
    folder = tmp_path_factory.mktemp("ours")
    shards = plan_shards([(spec_of(name, tensor),) for name, tensor in contents.items()], limit)
    for shard in shards:
        with ShardWriter(folder, shard) as writer:
            for spec in order.sample(shard.specs, len(shard.specs)):
                digest = writer.write(spec.name, contents[spec.name])
                raw = contents[spec.name].reshape(-1).view(torch.uint8).numpy()
                assert digest == hashlib.sha256(raw).hexdigest()
        path = folder / shard.filename
        assert path.stat().st_size == shard.nbytes
        theirs = load_file(path)
        assert set(theirs) == {spec.name for spec in shard.specs}
        assert all(same_bytes(tensor, contents[name]) for name, tensor in theirs.items())
        # A program that maps the file finds every tensor at a multiple of its item size.
        assert all(tensor.data_ptr() % tensor.itemsize == 0 for tensor in theirs.values())
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert all(same_bytes(opened.get_tensor(name), contents[name]) for name in opened.keys())  # noqa: SIM118
    if shards:
        write_atomic(folder / "model.safetensors.index.json", index_json(shards))
        with Checkpoint.open(folder) as checkpoint:
            assert all(same_bytes(checkpoint.read(name), tensor) for name, tensor in contents.items())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@given(drawn=drawn_units, limit=st.integers(1, 300))
def test_plan_keeps_order_units_and_limit(drawn, limit):
    units = [tuple(TensorSpec(*description) for description in unit) for unit in drawn]
    shards = plan_shards(units, limit)
    assert [spec for shard in shards for spec in shard.specs] == [spec for unit in units for spec in unit]
    for shard in shards:
        assert len(shard.specs) == 1 or shard.tensor_bytes <= limit
        assert shard.header_bytes % 8 == 0 and len(shard.header()) == shard.header_bytes
        assert shard.nbytes == shard.header_bytes + sum(spec.nbytes for spec in shard.specs)
    place = {spec.name: shard.filename for shard in shards for spec in shard.specs}
    for unit in units:
        if sum(spec.nbytes for spec in unit) <= limit:
            assert len({place[spec.name] for spec in unit}) <= 1
    if len(shards) > 1:
        width = len(shards)
        assert [shard.filename for shard in shards] == [
            f"model-{number:05d}-of-{width:05d}.safetensors" for number in range(1, width + 1)
        ]
    elif shards:
        assert shards[0].filename == "model.safetensors"


def test_a_unit_stays_together_and_a_large_one_is_cut_between_tensors():
    def bytes_spec(name: str, count: int) -> TensorSpec:
        return TensorSpec(name, torch.uint8, (count,))

    units = [
        (bytes_spec("a", 60),),
        (bytes_spec("b", 30), bytes_spec("c", 30)),
        (bytes_spec("d", 80), bytes_spec("e", 90)),
        (bytes_spec("f", 500),),
        (bytes_spec("g", 1),),
    ]
    shards = plan_shards(units, 100)
    assert ["".join(spec.name for spec in shard.specs) for shard in shards] == ["a", "bc", "d", "e", "f", "g"]


def test_plan_of_nothing():
    assert plan_shards([], 100) == ()


@pytest.mark.parametrize("name", ["a", "__metadata__"])
def test_plan_refuses_names_that_clash(name):
    with pytest.raises(ValueError, match=name):
        plan_shards([TWO, (TensorSpec(name, torch.uint8, (1,)),)], 100)


def test_plan_refuses_dtypes_outside_the_format():
    with pytest.raises(ValueError, match="'z' is torch.complex64"):
        plan_shards([(TensorSpec("z", torch.complex64, (1,)),)], 100)


def test_index_names_every_tensor_and_the_sum_of_their_bytes():
    shards = plan_shards([TWO[:1], TWO[1:]], 12)
    assert json.loads(index_json(shards)) == {
        "metadata": {"total_size": 24},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }


def shard_of_halves(count: int) -> Shard:
    return Shard("model.safetensors", tuple(TensorSpec(f"t{number}", torch.float16, (2,)) for number in range(count)))


@pytest.mark.parametrize("count", range(1, 17))
@pytest.mark.parametrize("swapped", ["none", "some", "all"])
def test_float16_may_become_bfloat16_in_a_file_of_the_same_size(count, swapped, tmp_path):
    shard = shard_of_halves(count)
    chosen = [swapped == "all" or (swapped == "some" and number % 2 == 0) for number in range(count)]
    with ShardWriter(tmp_path, shard) as writer:
        for number, bfloat16 in enumerate(chosen):
            writer.write(f"t{number}", torch.full((2,), number, dtype=torch.bfloat16 if bfloat16 else torch.float16))
    path = tmp_path / shard.filename
    assert path.stat().st_size == shard.nbytes
    for number, tensor in ((int(name[1:]), tensor) for name, tensor in load_file(path).items()):
        assert tensor.dtype == (torch.bfloat16 if chosen[number] else torch.float16)
        assert tensor.tolist() == [number, number]


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("c", torch.zeros(1), "'c' was not planned"),
        (
            "a",
            torch.zeros(3, 2, dtype=torch.float16),
            r"planned as torch.float16 \(2, 3\) but is torch.float16 \(3, 2\)",
        ),
        ("a", torch.zeros(2, 3), "but is torch.float32"),
        ("b", torch.zeros(3, dtype=torch.float32), "planned as torch.int32"),
    ],
)
def test_tensor_that_was_not_planned_so(name, tensor, words, tmp_path):
    with pytest.raises(ValueError, match=words), ShardWriter(tmp_path, Shard("x.safetensors", TWO)) as writer:
        writer.write(name, tensor)
    assert not list(tmp_path.iterdir())


def test_tensor_written_twice(tmp_path):
    with (
        pytest.raises(ValueError, match="'b' is already written"),
        ShardWriter(tmp_path, Shard("x.safetensors", TWO)) as writer,
    ):
        writer.write("b", torch.zeros(3, dtype=torch.int32))
        writer.write("b", torch.zeros(3, dtype=torch.int32))
    assert not list(tmp_path.iterdir())


def test_tensor_promised_but_never_written(tmp_path):
    with (
        pytest.raises(ValueError, match="1 promised tensors were never written, first 'b'"),
        ShardWriter(tmp_path, Shard("x.safetensors", TWO)) as writer,
    ):
        writer.write("a", torch.zeros(2, 3, dtype=torch.float16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_failure_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), ShardWriter(tmp_path, Shard(path.name, TWO)) as writer:
        writer.write("a", torch.zeros(2, 3, dtype=torch.float16))
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_file_is_invisible_until_complete_and_a_killed_attempt_is_overwritten(tmp_path):
    shard = Shard("x.safetensors", TWO)
    for leftover in (b"", bytes(10_000)):
        (tmp_path / f".{shard.filename}.partial").write_bytes(leftover)
        with ShardWriter(tmp_path, shard) as writer:
            writer.write("a", torch.ones(2, 3, dtype=torch.float16))
            assert not list(tmp_path.glob("*.safetensors"))
            writer.write("b", torch.ones(3, dtype=torch.int32))
        assert [path.name for path in tmp_path.iterdir()] == [shard.filename]
        assert (tmp_path / shard.filename).stat().st_size == shard.nbytes
        (tmp_path / shard.filename).unlink()


def test_short_writes(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, content, at: real(fd, content[:5], at))
    with ShardWriter(tmp_path, Shard("x.safetensors", TWO)) as writer:
        writer.write("a", torch.arange(6.0).half().view(2, 3))
        writer.write("b", torch.arange(3, dtype=torch.int32))
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_strided_tensors_are_written_in_their_own_order(dtype, tmp_path, monkeypatch, same_bytes):
    monkeypatch.setattr(write, "CHUNK_BYTES", 32)
    tensor = random_tensor(dtype, (6, 5, 7), seed=0).permute(2, 0, 1)[::2]
    with ShardWriter(tmp_path, Shard("x.safetensors", (spec_of("t", tensor),))) as writer:
        writer.write("t", tensor)
    assert same_bytes(load_file(tmp_path / "x.safetensors")["t"], tensor)


def test_parameters_that_require_gradients(tmp_path):
    tensor = torch.nn.Parameter(torch.ones(3))
    with ShardWriter(tmp_path, Shard("x.safetensors", (spec_of("t", tensor),))) as writer:
        writer.write("t", tensor)
    assert load_file(tmp_path / "x.safetensors")["t"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "not permitted"),
        (errno.EIO, "error"),
    ],
)
def test_disk_that_cannot_take_the_file(call, code, words, tmp_path, monkeypatch):
    monkeypatch.setattr(os, call, fail(OSError(code, "Input/output error")))
    shard = Shard("x.safetensors", TWO)
    with pytest.raises(OutputError) as caught, ShardWriter(tmp_path, shard) as writer:
        writer.write("a", torch.zeros(2, 3, dtype=torch.float16))
        writer.write("b", torch.zeros(3, dtype=torch.int32))
    monkeypatch.undo()
    message = str(caught.value)
    assert str(tmp_path / "x.safetensors") in message and words in message
    assert f"{shard.nbytes} bytes are needed" in message and "bytes are free" in message
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    with (
        pytest.raises(OutputError, match="the disk is full.*10 bytes are free"),
        ShardWriter(tmp_path, shard_of_halves(9)),
    ):
        pytest.fail("the block must not begin")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_callers_own_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), ShardWriter(tmp_path, Shard("x.safetensors", TWO)):
        (tmp_path / "absent").read_bytes()


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
def test_writing_makes_no_second_copy_of_a_large_tensor(transposed, tmp_path, anonymous_peak):
    tensor = torch.ones(100, 1 << 20, dtype=torch.bfloat16)
    tensor = tensor.t() if transposed else tensor
    shard = Shard("x.safetensors", (spec_of("t", tensor),))
    with anonymous_peak() as peak, ShardWriter(tmp_path, shard) as writer:
        writer.write("t", tensor)
    assert (tmp_path / "x.safetensors").stat().st_size == shard.nbytes > 200e6
    assert peak.growth < 0.25 * tensor.nbytes  # the pieces, and what the allocator keeps of them
