"""Bit streams against their definition: code j at bit j·b, least significant bit first, rows padded to 32 bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.grids import pack, packed_words, unpack, unpack_at

BITS = st.integers(1, 8)
SIZES = st.integers(0, 70)
SEEDS = st.integers(0, 2**31)


def random_codes(rows: int, count: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, count), generator=generator).to(torch.uint8)


def by_definition(codes: list[int], bits: int) -> list[int]:
    """The words of one row, from one large integer."""
    stream = sum(code << (place * bits) for place, code in enumerate(codes))
    words = -(-len(codes) * bits // 32)
    return [stream >> (32 * word) & 0xFFFFFFFF for word in range(words)]


@given(bits=BITS, rows=st.integers(0, 5), count=SIZES, seed=SEEDS)
def test_pack_is_the_definition_and_unpack_its_inverse(bits: int, rows: int, count: int, seed: int) -> None:
    codes = random_codes(rows, count, bits, seed)
    words = pack(codes, bits)
    assert words.shape == (rows, packed_words(count, bits))
    expected = [by_definition(row, bits) for row in codes.tolist()]
    assert words.numpy().view(np.uint32).tolist() == expected
    assert torch.equal(unpack(words, bits, count), codes)


@given(bits=BITS, count=st.integers(1, 70), seed=SEEDS, data=st.data())
def test_codes_are_found_at_any_place(bits: int, count: int, seed: int, data: st.DataObject) -> None:
    codes = random_codes(1, count, bits, seed)
    places = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=9)), dtype=torch.int64)
    assert torch.equal(unpack_at(pack(codes, bits)[0], bits, places), codes[0, places])


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_last_code_may_end_on_the_last_bit(bits: int) -> None:
    codes = torch.full((2, 32), 2**bits - 1, dtype=torch.uint8)
    assert torch.equal(pack(codes, bits), torch.full((2, bits), -1, dtype=torch.int32))
    assert torch.equal(unpack_at(pack(codes, bits)[0], bits, torch.arange(32)), codes[0])


def test_golden_vector_of_compressed_tensors() -> None:
    words = pack(torch.arange(32, dtype=torch.uint8)[None] % 8, 3)
    assert [word & 0xFFFFFFFF for word in words[0].tolist()] == [0x88FAC688, 0xC688FAC6, 0xFAC688FA]


def test_strided_codes_and_words() -> None:
    codes = random_codes(6, 40, 3, 0)
    assert torch.equal(pack(codes[::2, ::2], 3), pack(codes[::2, ::2].contiguous(), 3))
    wide = pack(codes, 3).repeat_interleave(2, dim=1)
    assert torch.equal(unpack(wide[:, ::2], 3, 40), codes)


@pytest.mark.peer("compressed_tensors")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", range(1, 9))
def test_same_bits_as_compressed_tensors(bits: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")

    codes = random_codes(5, 96, bits, bits)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(helpers.pack_to_int32(signed, bits), pack(codes, bits))
