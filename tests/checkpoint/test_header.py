"""A header that lies is refused before any tensor is read, in words that name the file and the numbers."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load

from bitbudget.checkpoint.header import DTYPES, read_header
from bitbudget.errors import BitbudgetError, InputError

GOOD = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def refusal(path: Path) -> str:
    """The message with which a file is refused; it always names the file."""
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_tensors_come_in_the_order_of_their_data(tmp_path, make_file, good_header):
    header = dict(reversed(good_header.items()))
    infos = read_header(make_file(tmp_path / "x.safetensors", header, bytes(24)))
    start = 8 + len(json.dumps(header))
    assert list(infos) == ["a", "b"]
    assert (infos["a"].dtype, infos["a"].shape, infos["a"].start, infos["a"].nbytes) == (
        torch.float16,
        (2, 3),
        start,
        12,
    )
    assert (infos["b"].dtype, infos["b"].shape, infos["b"].start, infos["b"].nbytes) == (
        torch.int32,
        (3,),
        start + 12,
        12,
    )


def test_header_padded_with_spaces_and_without_tensors(tmp_path, make_file):
    assert read_header(make_file(tmp_path / "x.safetensors", b"{}      ")) == {}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name, tmp_path, make_file):
    nbytes = 3 * DTYPES[name].itemsize
    entry = {"dtype": name, "shape": [3], "data_offsets": [0, nbytes]}
    assert read_header(make_file(tmp_path / "x.safetensors", {"t": entry}, bytes(nbytes)))["t"].dtype == DTYPES[name]


def test_length_beyond_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert "claims 1000 bytes but only 2 follow" in refusal(path)


def test_header_over_100_megabytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little") + b"{}")
    with open(path, "r+b") as stream:
        stream.truncate(200_000_000)
    message = refusal(path)
    assert "claims 100000001 bytes" in message and "100000000" in message


@pytest.mark.parametrize("content", [b"", b"\x02\0\0"])
def test_too_few_bytes(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert f"has {len(content)} bytes, too few" in refusal(path)


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "Git LFS pointer" in refusal(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{nonsense", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}", "'a' occurs twice"),
        (b'{"\\ud800": {}}', "not valid JSON"),
        (b"[]", "no JSON object but a list"),
        ({"__metadata__": {"format": 1}}, "`__metadata__`"),
        ({"__metadata__": "pt"}, "`__metadata__`"),
    ],
)
def test_header_that_is_no_header(header, words, tmp_path, make_file):
    assert words in refusal(make_file(tmp_path / "x.safetensors", header, bytes(12)))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({**GOOD, "dtype": "F4"}, "unknown dtype 'F4'; known are F64, F32"),
        ({**GOOD, "dtype": ["F16"]}, "unknown dtype ['F16']"),
        ({**GOOD, "shape": [2, 4]}, "shape [2, 4] takes 16 bytes, but its offsets 0 to 12 hold 12"),
        ({**GOOD, "dtype": "F32"}, "dtype F32 and shape [2, 3] takes 24 bytes"),
        ({**GOOD, "shape": [-2, -3]}, "impossible shape [-2, -3]"),
        ({**GOOD, "shape": [2.0, 3]}, "impossible shape [2.0, 3]"),
        ({**GOOD, "shape": [True, 6]}, "impossible shape [True, 6]"),
        ({**GOOD, "shape": 6}, "impossible shape 6"),
        ({**GOOD, "shape": [0, 1 << 62], "data_offsets": [0, 0]}, "impossible shape"),
        ({**GOOD, "data_offsets": [12, 0]}, "impossible data_offsets [12, 0]"),
        ({**GOOD, "data_offsets": [-12, 0]}, "impossible data_offsets [-12, 0]"),
        ({**GOOD, "data_offsets": [12]}, "impossible data_offsets [12]"),
        ({**GOOD, "data_offsets": None}, "impossible data_offsets None"),
        ({"dtype": "F16", "shape": [2, 3]}, "needs dtype, shape and data_offsets"),
        ({**GOOD, "extra": 1}, "needs dtype, shape and data_offsets"),
        (12, "needs dtype, shape and data_offsets, found 12"),
    ],
)
def test_entry_that_lies(entry, words, tmp_path, make_file):
    message = refusal(make_file(tmp_path / "x.safetensors", {"layer.weight": entry}, bytes(12)))
    assert words in message and "'layer.weight'" in message


def test_overlap(tmp_path, make_file, good_header):
    good_header["b"]["data_offsets"] = [8, 20]
    message = refusal(make_file(tmp_path / "x.safetensors", good_header, bytes(20)))
    assert "'b' starts at byte" in message and "overlaps the tensor 'a'" in message


@pytest.mark.parametrize(("name", "previous"), [("a", "the header"), ("b", "the tensor 'a'")])
def test_hole(name, previous, tmp_path, make_file, good_header):
    for later in ("a", "b") if name == "a" else ("b",):
        good_header[later]["data_offsets"] = [offset + 4 for offset in good_header[later]["data_offsets"]]
    message = refusal(make_file(tmp_path / "x.safetensors", good_header, bytes(28)))
    assert f"'{name}' starts at byte" in message and f"leaves a hole after {previous}" in message


def test_truncated(tmp_path, make_file, good_header):
    path = make_file(tmp_path / "x.safetensors", good_header, bytes(17))
    size = path.stat().st_size
    message = refusal(path)
    assert f"truncated: expected {size + 7} bytes, found {size} (7 are missing, first in the tensor 'b')" in message


def test_bytes_behind_the_last_tensor(tmp_path, make_file, good_header):
    path = make_file(tmp_path / "x.safetensors", good_header, bytes(29))
    size = path.stat().st_size
    assert f"too long: expected {size - 5} bytes, found {size}. The last 5 bytes" in refusal(path)


def test_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "absent.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 66) | st.sampled_from(["F16", "I32", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "a"]), inner),
    max_leaves=4,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "I32", "U8"]) | json_values,
        "shape": st.lists(st.integers(0, 3), max_size=2) | json_values,
        "data_offsets": st.tuples(st.integers(0, 12), st.integers(0, 12)).map(list) | json_values,
    }
)


@given(header=st.dictionaries(st.sampled_from(["a", "b"]), entries | json_values), size=st.integers(0, 24))
def test_no_header_is_accepted_that_the_format_library_refuses(header, size, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    try:
        infos = read_header(path)
    except BitbudgetError:
        return
    try:
        theirs = load(path.read_bytes())
    except SafetensorError as error:
        pytest.fail(f"only we accept {header}: {error}")
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {k: v.shape for k, v in infos.items()}


@given(content=st.binary(max_size=64))
def test_arbitrary_bytes_end_in_one_of_our_errors(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "x.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except InputError as error:
        assert str(path) in str(error)
