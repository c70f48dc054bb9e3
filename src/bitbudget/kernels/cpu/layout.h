// Where things lie in packed weights and in inputs. One layout for all instruction sets, described by plain functions that pack.cpp,
// the decoders and the tests share.
//
// Weights: a tile is 16 rows, a cell is one group of columns of one tile, cells follow each other tile by tile. A cell is its codes, then
// 16 scales, then 16 zeros. Codes come in blocks of 32 columns; a block takes `bits` lines of 64 bytes. The 32-bit word r of a line
// belongs to row r of the tile and its 4 bytes to 4 neighbouring columns, so that one multiply-add instruction takes 16 rows × 4 columns
// against a broadcast of 4 values of x. The 8 "quads" of 4 columns of a block share the bits of its lines as `pieces` says.
//
// Inputs: int8 values, then a scale per (group, token), then a sum per (group, token). Tokens come in blocks whose streams (one per
// token, or two with a16: value and residual) are interleaved by quads, so that a kernel reads one address with constant offsets.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace bitbudget {

static constexpr int kTileRows = 16;
static constexpr int kBlockColumns = 32;
static constexpr int kQuads = 8;         // of 4 columns in a block
static constexpr int kLineBytes = 64;    // 16 rows × 4 columns
static constexpr std::int64_t kLargestGroup = 65536;  // 255 · 128 · 65536 < 2^31

// Bits [from, from + width) of each byte of line `line` hold bits [to, to + width) of the code.
struct Piece {
  int line, from, width, to;
};

struct Pieces {
  int count;
  Piece piece[3];
};

// The pieces of the codes of quad `quad` of a block. Whole codes sit in a byte as often as they fit; what is left over at the top of
// the bytes makes up the others. Chosen so that a decoder masks most codes where they lie and never needs more than two shifts.
static constexpr Pieces pieces(int bits, int quad) {
  switch (bits) {
    case 2:
      return {1, {{quad / 4, 2 * (quad % 4), 2, 0}, {}, {}}};
    case 3:
      if (quad < 6) return {1, {{quad / 2, 3 * (quad % 2), 3, 0}, {}, {}}};
      return {2, {{quad - 6, 6, 2, 0}, {2, quad == 6 ? 7 : 6, 1, 2}, {}}};
    case 4:
      return {1, {{quad / 2, 4 * (quad % 2), 4, 0}, {}, {}}};
    case 5:
      if (quad < 5) return {1, {{quad, 0, 5, 0}, {}, {}}};
      if (quad < 7) return {2, {{quad - 5, 5, 3, 2}, {quad - 2, 6, 2, 0}, {}}};
      return {3, {{2, 5, 3, 2}, {3, 5, 1, 1}, {4, 5, 1, 0}}};
    case 6: {
      const int half = 3 * (quad / 4);
      if (quad % 4 < 3) return {1, {{half + quad % 4, 0, 6, 0}, {}, {}}};
      return {3, {{half, 6, 2, 4}, {half + 1, 6, 2, 2}, {half + 2, 6, 2, 0}}};
    }
    default:
      return {1, {{quad, 0, 8, 0}, {}, {}}};
  }
}

static constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
static constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

struct Groups {
  std::int64_t count;
  std::int64_t padded;  // columns that a group takes, zeros at its end
};

static inline Groups groups_of(std::int64_t columns, std::int64_t group) {
  return {ceil_div(columns, group), ceil_div(smaller(group, columns), kBlockColumns) * kBlockColumns};
}

struct WeightsLayout {
  std::int64_t rows, columns, group;
  int bits;
  Parameters parameters;
  Groups groups;
  std::int64_t tiles, blocks;                       // of all rows; of a cell
  std::int64_t codes_bytes, cell_bytes, tile_bytes;  // codes of a cell; a cell; a tile
  std::int64_t scale_bytes, zero_bytes;             // of one row and group
};

static inline WeightsLayout weights_layout(const Shape& shape) {
  WeightsLayout layout{};
  layout.rows = shape.rows;
  layout.columns = shape.columns;
  layout.group = smaller(shape.group, shape.columns);
  layout.bits = shape.bits;
  layout.parameters = shape.parameters;
  layout.groups = groups_of(shape.columns, shape.group);
  layout.tiles = ceil_div(shape.rows, kTileRows);
  layout.blocks = layout.groups.padded / kBlockColumns;
  layout.scale_bytes = layout.zero_bytes = shape.parameters == Parameters::fp32 ? 4 : 2;
  layout.codes_bytes = layout.blocks * shape.bits * kLineBytes;
  layout.cell_bytes = layout.codes_bytes + kTileRows * (layout.scale_bytes + layout.zero_bytes);
  layout.tile_bytes = layout.groups.count * layout.cell_bytes;
  return layout;
}

struct TokenBlock {
  std::int64_t first, count;  // tokens
};

struct InputsLayout {
  std::int64_t n;
  Groups groups;
  int streams;          // per token: 1, or 2 with a residual
  std::int64_t blocks;  // of tokens
  std::int64_t values_bytes;

  // Blocks differ by at most one token, so that no kernel runs on a lonely remainder.
  TokenBlock block(std::int64_t index) const {
    const std::int64_t base = n / blocks, longer = n % blocks;
    return {index * base + smaller(index, longer), base + (index < longer ? 1 : 0)};
  }
  std::int64_t values(std::int64_t group, std::int64_t first_token) const {
    return (group * n + first_token) * streams * groups.padded;
  }
  std::int64_t bytes() const { return values_bytes + 2 * groups.count * n * static_cast<std::int64_t>(sizeof(float)); }
};

// `widest`: the most streams that the kernels of an instruction set take at once.
static inline InputsLayout inputs_layout(std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations, int widest) {
  InputsLayout layout{};
  layout.n = n;
  layout.groups = groups_of(columns, group);
  layout.streams = activations == Activations::a16 ? 2 : 1;
  layout.blocks = ceil_div(n, widest / layout.streams);
  layout.values_bytes = layout.groups.count * layout.groups.padded * n * layout.streams;
  return layout;
}

// Outliers, row after row: where each row begins, int32 [rows + 1], then all columns, 16 bits each, then all values, fp16. Each of the
// three begins a line, and behind the last value is room for a register of them.
struct OutliersLayout {
  std::int64_t columns, values, bytes;
};

static inline OutliersLayout outliers_layout(std::int64_t rows, std::int64_t count) {
  const auto lines = [](std::int64_t bytes) { return ceil_div(bytes, kLineBytes) * kLineBytes; };
  OutliersLayout layout{};
  layout.columns = lines((rows + 1) * static_cast<std::int64_t>(sizeof(std::int32_t)));
  layout.values = layout.columns + lines(2 * count);
  layout.bytes = layout.values + lines(2 * count) + kLineBytes;
  return layout;
}

}  // namespace bitbudget
