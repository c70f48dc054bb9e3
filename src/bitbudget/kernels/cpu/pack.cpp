// Packing of weights and its exact inverse, by the description in layout.h alone; the same on every instruction set.

#include <cstring>

#include "half.h"
#include "layout.h"

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

// Calls visit(byte of the cell, quad of the block, code's place in the matrix) for every code that exists.
template <class Visit>
void each_code(const WeightsLayout& layout, const CellOrigin& at, Visit&& visit) {
  for (std::int64_t row = 0; row < at.rows; ++row)
    for (std::int64_t column = 0; column < at.columns; ++column) {
      const std::int64_t block = column / kBlockColumns, within = column % kBlockColumns;
      const std::int64_t byte = block * layout.bits * kLineBytes + row * 4 + within % 4;
      visit(byte, static_cast<int>(within / 4), (at.row + row) * layout.columns + at.column + column);
    }
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

void pack_cell(const WeightsLayout& layout, std::int64_t tile, std::int64_t group, const std::uint8_t* codes, const float* scale,
               const float* zero, std::uint8_t* cell) {
  const CellOrigin at = origin(layout, tile, group);
  std::memset(cell, 0, static_cast<std::size_t>(layout.cell_bytes));  // padding rows have scale 0
  each_code(layout, at, [&](std::int64_t byte, int quad, std::int64_t place) {
    const Pieces parts = pieces(layout.bits, quad);
    for (int i = 0; i < parts.count; ++i) {
      const Piece& piece = parts.piece[i];
      const int field = (codes[place] >> piece.to) & ((1 << piece.width) - 1);
      cell[byte + piece.line * kLineBytes] |= static_cast<std::uint8_t>(field << piece.from);
    }
  });
  std::uint8_t* scales = cell + layout.codes_bytes;
  std::uint8_t* zeros = scales + kTileRows * layout.scale_bytes;
  for (std::int64_t row = 0; row < at.rows; ++row) {
    const std::int64_t place = (at.row + row) * layout.groups.count + group;
    store_parameter(scales + row * layout.scale_bytes, scale[place], layout.parameters, true);
    store_parameter(zeros + row * layout.zero_bytes, zero[place], layout.parameters, false);
  }
}

void unpack_cell(const WeightsLayout& layout, std::int64_t tile, std::int64_t group, const std::uint8_t* cell, std::uint8_t* codes,
                 float* scale, float* zero) {
  const CellOrigin at = origin(layout, tile, group);
  each_code(layout, at, [&](std::int64_t byte, int quad, std::int64_t place) {
    const Pieces parts = pieces(layout.bits, quad);
    int code = 0;
    for (int i = 0; i < parts.count; ++i) {
      const Piece& piece = parts.piece[i];
      code |= (cell[byte + piece.line * kLineBytes] >> piece.from & ((1 << piece.width) - 1)) << piece.to;
    }
    codes[place] = static_cast<std::uint8_t>(code);
  });
  const std::uint8_t* scales = cell + layout.codes_bytes;
  const std::uint8_t* zeros = scales + kTileRows * layout.scale_bytes;
  for (std::int64_t row = 0; row < at.rows; ++row) {
    const std::int64_t place = (at.row + row) * layout.groups.count + group;
    scale[place] = load_parameter(scales + row * layout.scale_bytes, layout.parameters, true);
    zero[place] = load_parameter(zeros + row * layout.zero_bytes, layout.parameters, false);
  }
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
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t tile = 0; tile < layout.tiles; ++tile)
    for (std::int64_t group = 0; group < layout.groups.count; ++group)
      pack_cell(layout, tile, group, codes, scale, zero, bytes + tile * layout.tile_bytes + group * layout.cell_bytes);
}

void unpack(Isa, Shape shape, const void* packed, std::uint8_t* codes, float* scale, float* zero, int threads) {
  const WeightsLayout layout = weights_layout(shape);
  const auto* bytes = static_cast<const std::uint8_t*>(packed);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t tile = 0; tile < layout.tiles; ++tile)
    for (std::int64_t group = 0; group < layout.groups.count; ++group)
      unpack_cell(layout, tile, group, bytes + tile * layout.tile_bytes + group * layout.cell_bytes, codes, scale, zero);
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
