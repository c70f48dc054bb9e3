"""Reading: the folder's rules, and the same bytes as the format's own library whichever way they are asked for."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitbudget.checkpoint import read
from bitbudget.checkpoint.header import DTYPES
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def two_shards(tmp_path, make_index) -> Path:
    save_file({"a": torch.arange(6.0)}, tmp_path / SHARDS[0])
    save_file({"b": torch.arange(3), "c": torch.zeros(2)}, tmp_path / SHARDS[1])
    make_index(tmp_path, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


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


def test_shards_joined_by_the_index(two_shards):
    with Checkpoint.open(two_shards) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b", "c"}
        assert checkpoint.files == tuple(two_shards / shard for shard in SHARDS)
        assert checkpoint.read("b").tolist() == [0, 1, 2]


def test_a_tensor_that_the_index_leaves_out_is_kept(two_shards, make_index):
    make_index(two_shards, {"a": SHARDS[0], "b": SHARDS[1]})
    assert "c" in Checkpoint.open(two_shards).tensors


def test_links_to_blobs_are_followed(two_shards):
    blobs = two_shards / "blobs"
    blobs.mkdir()
    (two_shards / SHARDS[0]).rename(blobs / "0123")
    (two_shards / SHARDS[0]).symlink_to(Path("blobs") / "0123")
    assert Checkpoint.open(two_shards).read("a").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_single_file_of_any_name(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert Checkpoint.open(tmp_path).files == (tmp_path / "weights.safetensors",)


def test_model_safetensors_wins_over_other_names(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    assert set(Checkpoint.open(tmp_path).tensors) == {"a"}


def test_several_files_without_an_index(two_shards):
    (two_shards / "model.safetensors.index.json").unlink()
    message = refusal(two_shards)
    assert "2 safetensors files" in message and "model.safetensors.index.json" in message and SHARDS[0] in message


def test_two_checkpoints_in_one_folder(two_shards):
    save_file({"a": torch.zeros(1)}, two_shards / "model.safetensors")
    assert "two checkpoints" in refusal(two_shards)


def test_absent_shard(two_shards):
    (two_shards / SHARDS[1]).unlink()
    message = refusal(two_shards)
    assert f"names the shard '{SHARDS[1]}', which is absent" in message


def test_index_names_a_tensor_that_no_shard_holds(two_shards, make_index):
    make_index(two_shards, {"a": SHARDS[0], "b": SHARDS[1], "ghost": SHARDS[1]})
    message = refusal(two_shards)
    assert f"'ghost' in {SHARDS[1]}, which does not hold it" in message and "is in no shard" in message


def test_index_places_a_tensor_in_the_wrong_shard(two_shards, make_index):
    make_index(two_shards, {"a": SHARDS[1], "b": SHARDS[0]})
    message = refusal(two_shards)
    assert f"'a' in {SHARDS[1]}, which does not hold it" in message and f"is in {SHARDS[0]}" in message


def test_tensor_in_two_shards(two_shards):
    save_file({"b": torch.arange(3), "a": torch.zeros(2), "c": torch.zeros(2)}, two_shards / SHARDS[1])
    message = refusal(two_shards)
    assert "'a' is stored twice" in message and all(shard in message for shard in SHARDS)


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/model.safetensors",
        "../model.safetensors",
        "sub/../../x.safetensors",
        "..\\x",
        "C:\\x",
        "C:x",
        "\\x",
        "a\0b",
    ],
)
def test_shard_name_that_points_outside(shard, tmp_path, make_index):
    make_index(tmp_path, {"a": shard})
    assert "outside the folder" in refusal(tmp_path)


def test_shard_in_a_subfolder(tmp_path, make_index):
    (tmp_path / "weights").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "weights" / "one.safetensors")
    make_index(tmp_path, {"a": "weights/one.safetensors"})
    assert set(Checkpoint.open(tmp_path).tensors) == {"a"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\ud800"])
def test_index_that_is_no_index(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode(errors="surrogatepass"))
    message = refusal(tmp_path)
    assert "model.safetensors.index.json" in message and ("valid JSON" in message or "weight_map" in message)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickle_only(name, tmp_path):
    (tmp_path / name).write_bytes(b"never opened")
    message = refusal(tmp_path)
    assert name in message and "pickle" in message and "save_pretrained" in message


def test_folder_without_weights(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert "holds no weights" in refusal(tmp_path)


def test_folder_that_is_not_there(tmp_path):
    assert "is not a folder" in refusal(tmp_path / "absent")


def test_opening_a_folder_of_70_billion_parameters_is_quick(tmp_path, make_index, make_file):
    matrices = {f"model.layers.{block}.{kind}": shape for block in range(80) for kind, shape in BLOCK.items()}
    matrices |= {"model.embed_tokens.weight": (128_256, 8192), "lm_head.weight": (128_256, 8192)}
    names, weight_map = list(matrices), {}
    for number in range(30):
        end, header = 0, {}
        for name in names[number::30]:
            nbytes = matrices[name][0] * matrices[name][1] * 2
            header[name] = {"dtype": "BF16", "shape": matrices[name], "data_offsets": [end, end + nbytes]}
            end += nbytes
        path = make_file(tmp_path / f"model-{number + 1:05d}-of-00030.safetensors", header)
        os.truncate(path, path.stat().st_size + end)
        weight_map |= dict.fromkeys(header, path.name)
    make_index(tmp_path, weight_map)
    begin = time.perf_counter()
    checkpoint = Checkpoint.open(tmp_path)
    assert time.perf_counter() - begin < 1
    assert sum(info.nbytes for info in checkpoint.tensors.values()) > 140e9


BLOCK = {
    "q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192),
    "gate": (28_672, 8192), "up": (28_672, 8192), "down": (8192, 28_672), "norm": (1, 8192), "norm2": (1, 8192),
}  # fmt: skip


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
