"""Reading: the same bytes as the format's own library whichever way they are asked for."""

import hashlib
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitbudget.checkpoint import read
from bitbudget.checkpoint.header import DTYPES
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError
from checkpoint.samples import random_tensor

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(random_tensor, st.sampled_from(list(DTYPES.values())), shapes, st.integers(0, 1000))


@given(contents=st.dictionaries(st.text("abc.é", min_size=1), tensors, max_size=5))
def test_files_of_the_format_library_read_back_bit_for_bit(contents, tmp_path_factory, same_bytes):
    folder = tmp_path_factory.mktemp("theirs")
    save_file(contents, folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(contents)
        for name, tensor in contents.items():
            assert same_bytes(checkpoint.read(name), tensor)
            assert checkpoint.sha256(name) == hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()


@given(data=st.data(), dtype=st.sampled_from(list(DTYPES.values())), columns=st.sampled_from([(), (3,), (0,), (2, 2)]))
def test_rows(data, dtype, columns, tmp_path_factory, same_bytes):
    folder = tmp_path_factory.mktemp("rows")
    rows = data.draw(st.integers(0, 8))
    tensor = random_tensor(dtype, (rows, *columns), seed=rows)
    save_file({"first": torch.zeros(1), "t": tensor}, folder / "model.safetensors")
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, rows)] * 2)))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1)) if rows else st.just([])), dtype=torch.int64)
    with Checkpoint.open(folder) as checkpoint:
        assert same_bytes(checkpoint.read("t", start, stop), tensor[start:stop])
        wanted = torch.stack([tensor[int(row)] for row in ids]) if len(ids) else tensor[:0]
        assert same_bytes(checkpoint.read_rows("t", ids), wanted)


@pytest.mark.parametrize(
    ("start", "stop"), [(-1, None), (3, 2), (0, 5), (5, None)], ids=["negative", "reversed", "too far", "behind"]
)
def test_rows_that_do_not_exist(start, stop, tmp_path):
    save_file({"t": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(IndexError, match="4 rows"):
        checkpoint.read("t", start, stop)


@pytest.mark.parametrize("ids", [[-1], [0, 4]])
def test_row_ids_that_do_not_exist(ids, tmp_path):
    save_file({"t": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(IndexError, match="4 rows"):
        checkpoint.read_rows("t", torch.tensor(ids))


def test_a_scalar_has_no_rows(tmp_path):
    save_file({"t": torch.tensor(2.5)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.read("t") == 2.5
        with pytest.raises(IndexError, match="scalar"):
            checkpoint.read("t", 0, 1)


def test_neighbouring_rows_are_one_read_and_no_others_are_touched(tmp_path, monkeypatch):
    save_file({"t": torch.arange(40.0).view(10, 4)}, tmp_path / "model.safetensors")
    calls = []
    real = os.preadv
    with Checkpoint.open(tmp_path) as checkpoint:
        start = checkpoint.tensors["t"].start
        monkeypatch.setattr(
            os, "preadv", lambda fd, parts, at: calls.append((at, len(parts[0]))) or real(fd, parts, at)
        )
        checkpoint.read_rows("t", torch.tensor([7, 3, 4, 4, 5, 9], dtype=torch.int32))
    assert calls == [(start + 16 * 3, 16 * 3), (start + 16 * 7, 16), (start + 16 * 9, 16)]


def test_short_reads_and_several_calls(tmp_path, monkeypatch):
    tensor = torch.arange(1000.0)
    save_file({"t": tensor}, tmp_path / "model.safetensors")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: real(fd, [parts[0][:77]], at))
    monkeypatch.setattr(read, "READ_CALL_BYTES", 1024)
    monkeypatch.setattr(read, "HASH_CHUNK_BYTES", 100)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("t"), tensor)
        assert checkpoint.sha256("t") == hashlib.sha256(tensor.numpy()).hexdigest()


def test_rows_beyond_4_gigabytes(tmp_path, make_file):
    rows, columns = 70_000, 32_768
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, rows * columns * 2]}
    path = make_file(tmp_path / "model.safetensors", {"t": entry})
    size = path.stat().st_size + rows * columns * 2
    with open(path, "r+b") as stream:
        stream.truncate(size)
        stream.seek(size - 2)
        stream.write(torch.tensor([1.5], dtype=torch.bfloat16).view(torch.uint8).numpy())
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.read("t", rows - 1)[0, -1] == 1.5
        assert checkpoint.read_rows("t", torch.tensor([rows - 1, 0]))[:, -1].tolist() == [1.5, 0.0]


def test_file_that_shrinks_after_opening(tmp_path):
    save_file({"t": torch.zeros(100)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 200)
        with pytest.raises(InputError, match="shorter since it was opened.*'t'.*ends at byte 200"):
            checkpoint.read("t")


def test_file_that_disappears_after_opening(tmp_path):
    save_file({"t": torch.zeros(100)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="'t' cannot be read"):
        checkpoint.read("t")


def test_descriptors_are_closed_with_the_object_and_by_close(tmp_path):
    save_file({"t": torch.zeros(1)}, tmp_path / "model.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.read("t")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before
    checkpoint.read("t")
    del checkpoint
    assert len(os.listdir("/proc/self/fd")) == before


def test_unknown_name_suggests_near_ones(tmp_path):
    save_file({"model.layers.0.q_proj.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(InputError, match=r"nearest.*layers\.0\.q_proj"):
        checkpoint.read("model.layers.0.q_prj.weight")


def test_reading_holds_the_tensor_once(tmp_path, anonymous_peak):
    nbytes = 200 << 20
    header = json.dumps({"t": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, path.stat().st_size + nbytes)
    checkpoint = Checkpoint.open(tmp_path)
    with anonymous_peak() as peak:
        tensor = checkpoint.read("t")
    assert len(tensor) == nbytes
    assert peak.growth < 1.2 * nbytes
