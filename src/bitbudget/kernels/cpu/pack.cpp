// Packing of weights and its exact inverse, by the description in layout.h alone; the same on every instruction set.

#include <cstring>

#include "half.h"
#include "layout.h"
#include "unroll.h"

namespace bitbudget {
namespace {

struct CellOrigin {
  std::int64_t row, column;  // the first of the cell
  std::int64_t rows, columns;  // that exist; the rest of the cell is padding
};

CellOrigin origin(const WeightsLayout& layout, std::int64_t tile, std::int64_t group) {
  const std::int64_t row = tile * kTileRows, column = group * layout.group;
  return {row, column, smaller(kTileRows, layout.rows - row), smaller(layout.group, layout.columns - column)};
}

constexpr std::uint32_t in_every_byte(int value) { return static_cast<std::uint32_t>(value) * 0x01010101u; }

// 32 codes of one row to its words of the block's lines. A word holds the same bits of four neighbouring codes, so that pieces move by
// four at a time.
template <int kBits>
void pack_words(const std::uint8_t* codes, std::uint8_t* lines) {
  std::uint32_t word[kBits] = {};
  unroll<kQuads>([&](auto quad) {
    constexpr Pieces parts = pieces(kBits, decltype(quad)::value);
    std::uint32_t four;
    std::memcpy(&four, codes + 4 * quad, sizeof four);
    for (int i = 0; i < parts.count; ++i) {
      const Piece piece = parts.piece[i];
      word[piece.line] |= (four >> piece.to & in_every_byte((1 << piece.width) - 1)) << piece.from;
    }
  });
  for (int i = 0; i < kBits; ++i) std::memcpy(lines + i * kLineBytes, word + i, sizeof word[i]);
}

template <int kBits>
void unpack_words(const std::uint8_t* lines, std::uint8_t* codes) {
  std::uint32_t word[kBits];
  for (int i = 0; i < kBits; ++i) std::memcpy(word + i, lines + i * kLineBytes, sizeof word[i]);
  unroll<kQuads>([&](auto quad) {
    constexpr Pieces parts = pieces(kBits, decltype(quad)::value);
    std::uint32_t four = 0;
    for (int i = 0; i < parts.count; ++i) {
      const Piece piece = parts.piece[i];
      four |= (word[piece.line] >> piece.from & in_every_byte((1 << piece.width) - 1)) << piece.to;
    }
    std::memcpy(codes + 4 * quad, &four, sizeof four);
  });
}

// Calls visit(the row's word in the first line of a block, place of the block's first code in the matrix, codes that exist there).
template <class Visit>
void each_block(const WeightsLayout& layout, const CellOrigin& at, Visit&& visit) {
  for (std::int64_t row = 0; row < at.rows; ++row)
    for (std::int64_t column = 0; column < at.columns; column += kBlockColumns)
      visit(column / kBlockColumns * layout.bits * kLineBytes + row * 4, (at.row + row) * layout.columns + at.column + column,
            static_cast<std::size_t>(smaller(kBlockColumns, at.columns - column)));
}

void store_parameter(std::uint8_t* at, float value, Parameters kind, bool is_scale) {
  if (kind == Parameters::fp32) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const std::uint16_t half = kind == Parameters::bf16 && is_scale ? to_bf16(value) : to_fp16(value);
  std::memcpy(at, &half, sizeof half);
}

float load_parameter(const std::uint8_t* at, Parameters kind, bool is_scale) {
  if (kind == Parameters::fp32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, at, sizeof half);
  return kind == Parameters::bf16 && is_scale ? from_bf16(half) : from_fp16(half);
}

template <int kBits>
void pack_cell(const WeightsLayout& layout, std::int64_t tile, std::int64_t group, const std::uint8_t* codes, const float* scale,
               const float* zero, std::uint8_t* cell) {
  const CellOrigin at = origin(layout, tile, group);
  std::memset(cell, 0, static_cast<std::size_t>(layout.cell_bytes));  // padding rows have scale 0
  each_block(layout, at, [&](std::int64_t word, std::int64_t place, std::size_t count) {
    std::uint8_t block[kBlockColumns] = {};
    std::memcpy(block, codes + place, count);
    pack_words<kBits>(block, cell + word);
  });
  std::uint8_t* scales = cell + layout.codes_bytes;
  std::uint8_t* zeros = scales + kTileRows * layout.scale_bytes;
  for (std::int64_t row = 0; row < at.rows; ++row) {
    const std::int64_t place = (at.row + row) * layout.groups.count + group;
    store_parameter(scales + row * layout.scale_bytes, scale[place], layout.parameters, true);
    store_parameter(zeros + row * layout.zero_bytes, zero[place], layout.parameters, false);
  }
}

template <int kBits>
void unpack_cell(const WeightsLayout& layout, std::int64_t tile, std::int64_t group, const std::uint8_t* cell, std::uint8_t* codes,
                 float* scale, float* zero) {
  const CellOrigin at = origin(layout, tile, group);
  each_block(layout, at, [&](std::int64_t word, std::int64_t place, std::size_t count) {
    std::uint8_t block[kBlockColumns];
    unpack_words<kBits>(cell + word, block);
    std::memcpy(codes + place, block, count);
  });
  const std::uint8_t* scales = cell + layout.codes_bytes;
  const std::uint8_t* zeros = scales + kTileRows * layout.scale_bytes;
  for (std::int64_t row = 0; row < at.rows; ++row) {
    const std::int64_t place = (at.row + row) * layout.groups.count + group;
    scale[place] = load_parameter(scales + row * layout.scale_bytes, layout.parameters, true);
    zero[place] = load_parameter(zeros + row * layout.zero_bytes, layout.parameters, false);
  }
}

// body(std::integral_constant of the width).
template <class Body>
void with_width(int bits, Body&& body) {
  unroll<9>([&](auto width) {
    constexpr int kBits = decltype(width)::value;
    if constexpr (kBits >= 2 && kBits != 7)
      if (bits == kBits) body(width);
  });
}

bool same(float a, float b) { return bits_of(a) == bits_of(b); }

}  // namespace

std::size_t packed_size(Isa, Shape shape) {
  const WeightsLayout layout = weights_layout(shape);
  return static_cast<std::size_t>(layout.tiles * layout.tile_bytes);
}

void pack(Isa, Shape shape, const std::uint8_t* codes, const float* scale, const float* zero, void* packed, int threads) {
  const WeightsLayout layout = weights_layout(shape);
  auto* bytes = static_cast<std::uint8_t*>(packed);
  with_width(shape.bits, [&](auto width) {
#pragma omp parallel for num_threads(threads < 1 ? 1 : threads) schedule(static)
    for (std::int64_t tile = 0; tile < layout.tiles; ++tile)
      for (std::int64_t group = 0; group < layout.groups.count; ++group)
        pack_cell<decltype(width)::value>(layout, tile, group, codes, scale, zero,
                                          bytes + tile * layout.tile_bytes + group * layout.cell_bytes);
  });
}

void unpack(Isa, Shape shape, const void* packed, std::uint8_t* codes, float* scale, float* zero, int threads) {
  const WeightsLayout layout = weights_layout(shape);
  const auto* bytes = static_cast<const std::uint8_t*>(packed);
  with_width(shape.bits, [&](auto width) {
#pragma omp parallel for num_threads(threads < 1 ? 1 : threads) schedule(static)
    for (std::int64_t tile = 0; tile < layout.tiles; ++tile)
      for (std::int64_t group = 0; group < layout.groups.count; ++group)
        unpack_cell<decltype(width)::value>(layout, tile, group, bytes + tile * layout.tile_bytes + group * layout.cell_bytes, codes,
                                            scale, zero);
  });
}

Parameters exact_parameters(const float* scale, const float* zero, std::int64_t count) {
  bool fp16 = true, bf16 = true;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!same(from_fp16(to_fp16(zero[i])), zero[i])) return Parameters::fp32;
    fp16 = fp16 && same(from_fp16(to_fp16(scale[i])), scale[i]);
    bf16 = bf16 && same(from_bf16(to_bf16(scale[i])), scale[i]);
  }
  return fp16 ? Parameters::fp16 : bf16 ? Parameters::bf16 : Parameters::fp32;
}

}  // namespace bitbudget
