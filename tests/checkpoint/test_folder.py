"""Which files of a folder are its weights, and what makes a folder unusable: each fault has its own message."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
