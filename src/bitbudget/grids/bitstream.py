"""Little-endian bit streams: code j of a row stands at bit j·b, a row is padded to whole 32-bit words.

This is the layout of compressed-tensors >= 0.17 for every width; its golden vector is a test. Eight codes of b bits are
always b whole bytes, so packing works on groups of eight codes and never looks at a single bit.
"""

import torch
from jaxtyping import Int32, Integer, UInt8
from torch import Tensor

WORD_BITS = 32


def packed_words(count: int, bits: int) -> int:
    """Number of 32-bit words that `count` codes of `bits` bits take."""
    return -(-count * bits // WORD_BITS)


def pack(codes: UInt8[Tensor, "rows count"], bits: int) -> Int32[Tensor, "rows words"]:
    """Pack codes below 2**bits (1 <= bits <= 8) into one bit stream a row."""
    rows, count = codes.shape
    eights = -(-count // 8)
    padded = codes.new_zeros(rows, eights, 8)
    padded.flatten(1)[:, :count] = codes
    stream = torch.zeros(rows, eights, dtype=torch.int64, device=codes.device)
    for place in range(8):
        stream |= padded[:, :, place].to(torch.int64) << (place * bits)
    octets = stream.view(torch.uint8).view(rows, eights, 8)[:, :, :bits].flatten(1)
    words = torch.zeros(rows, packed_words(count, bits), dtype=torch.int32, device=codes.device)
    used = min(octets.shape[1], words.shape[1] * 4)
    words.view(torch.uint8)[:, :used] = octets[:, :used]
    return words


def unpack(words: Int32[Tensor, "rows words"], bits: int, count: int) -> UInt8[Tensor, "rows {count}"]:
    """The exact inverse of `pack`."""
    rows = words.shape[0]
    eights = -(-count // 8)
    octets = words.contiguous().view(torch.uint8)
    used = min(octets.shape[1], eights * bits)
    stream = torch.zeros(rows, eights, 8, dtype=torch.uint8, device=words.device)
    if used < eights * bits:  # the last eight codes may be cut off at a word border
        octets = torch.nn.functional.pad(octets, (0, eights * bits - octets.shape[1]))
    stream[:, :, :bits] = octets[:, : eights * bits].view(rows, eights, bits)
    numbers = stream.view(torch.int64).squeeze(-1)
    codes = torch.empty(rows, eights, 8, dtype=torch.uint8, device=words.device)
    for place in range(8):
        codes[:, :, place] = (numbers >> (place * bits)) & (2**bits - 1)
    return codes.flatten(1)[:, :count]


def unpack_at(
    words: Int32[Tensor, " words"], bits: int, positions: Integer[Tensor, "*shape"]
) -> UInt8[Tensor, "*shape"]:
    """Codes at any positions of one stream; a code spans at most two bytes."""
    octets = words.view(torch.uint8)
    first_bit = positions.to(torch.int64) * bits
    byte = first_bit // 8
    after = (byte + 1).clamp_(max=octets.numel() - 1)  # behind the last byte no code goes on
    pair = octets[byte].to(torch.int32) | (octets[after].to(torch.int32) << 8)
    return ((pair >> (first_bit % 8).to(torch.int32)) & (2**bits - 1)).to(torch.uint8)
