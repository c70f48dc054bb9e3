// The product, once for all instruction sets. `V` (isa_*.cpp) has registers of codes, sums, and floats for the 16 rows of a tile:
//
//   Codes   64 unsigned bytes: 16 rows × 4 columns      load store mask<m> right<s> select<m>(a, b): bits of m from a, others from b
//           fetch, fetch_outer: into the first or second cache, from an address that may lie beyond the weights
//   Values  4 int8 of x, for every row                  broadcast
//   Sums    16 int32                                    dot<largest code>(sums, codes, values)  plus  right_sums<s>
//   Floats  16 fp32                                     of sums, from memory (fp32, fp16, bf16), splat, times, add_product, minus_product
//
// and constants: kTiles × kStreams accumulators of a block product fit its registers (kStreams ≥ 4), kTogether × kStreams beside the codes
// of so many tiles (0: not one), kClassSums accumulators those of one cell; kWholeBytes: dot is exact for all codes up to 255 in place;
// kWalk: tiles that a thread takes at a time, side by side where one stream of memory cannot use the bandwidth of a core; kTries: tries
// of ranges whose errors are measured at once (rounding.h).

#pragma once

#include "decode.h"
#include "multiply_outliers.h"
#include "quantize.h"
#include "rounding.h"
#include "unroll.h"

namespace bitbudget {

static constexpr std::int64_t kAhead = 2048;             // bytes that a stream of codes is fetched ahead of its use
static constexpr int kNarrow = 4;                        // up to so many streams a tile is multiplied by itself
static constexpr std::int64_t kCachedInputs = 768 << 10;  // bytes of inputs that are meant to stay in the second-level cache

static constexpr int largest_code(int bits) { return (1 << bits) - 1; }

// Adds one cell's part for one token:  y += a · scale · (Σ code · q − zero · Σ q).
template <class V>
static BITBUDGET_INLINE typename V::Floats add_cell(typename V::Floats y, typename V::Floats total, typename V::Floats scale,
                                                    typename V::Floats zero, float input_scale, float input_sum) {
  total = V::minus_product(total, zero, V::splat(input_sum));
  return V::add_product(y, V::times(scale, total), V::splat(input_scale));
}

// Sums of a value and its residual, in steps of the residual.
template <class V>
static BITBUDGET_INLINE typename V::Floats with_residual(typename V::Sums whole, typename V::Sums rest) {
  return V::add_product(V::floats(rest), V::splat(kResidualSteps), V::floats(whole));
}

template <class V>
static BITBUDGET_INLINE void load_parameters(const WeightsLayout& layout, const std::uint8_t* cell, typename V::Floats& scale,
                                             typename V::Floats& zero) {
  const std::uint8_t* at = cell + layout.codes_bytes;
  if (layout.parameters == Parameters::fp32) {
    scale = V::load_fp32(at);
    zero = V::load_fp32(at + kTileRows * 4);
  } else {
    scale = layout.parameters == Parameters::fp16 ? V::load_fp16(at) : V::load_bf16(at);
    zero = V::load_fp16(at + kTileRows * 2);
  }
}

template <class V>
static BITBUDGET_INLINE void write_rows(const Product& product, std::int64_t tile, std::int64_t token, const typename V::Floats& sum) {
  alignas(64) float y[kTileRows];
  V::store_fp32(y, sum);
  const std::int64_t first = tile * kTileRows, count = smaller(kTileRows, product.weights.rows - first);
  float* out = product.y + token * product.stride;
  if (product.order) {
    const std::int32_t* order = product.order + first;
    for (std::int64_t i = 0; i < count; ++i) out[order[i]] = product.bias ? y[i] + product.bias[order[i]] : y[i];
    return;
  }
  if (product.bias)
    for (std::int64_t i = 0; i < count; ++i) y[i] += product.bias[first + i];
  if (count == kTileRows)
    std::memcpy(out + first, y, sizeof y);
  else
    for (std::int64_t i = 0; i < count; ++i) out[first + i] = y[i];
}

// Σ code · q of a cell of each of kTogether tiles for each of kStreams streams; codes are masked in registers and never stored, and what
// is broadcast of x serves all of the tiles. kFetched: bytes `ahead` are fetched, which costs a processor time that finds them by itself.
template <class V, int kBits, int kTogether, int kStreams, bool kFetched>
static BITBUDGET_INLINE void dot_cells(const std::uint8_t* const (&cells)[kTogether], std::int64_t ahead, const std::int8_t* x,
                                       std::int64_t blocks, typename V::Sums (&result)[kTogether][kStreams]) {
  constexpr bool kInPlace = V::kWholeBytes && classes(kBits) * kTogether * kStreams <= V::kClassSums;
  constexpr int kClasses = kInPlace ? classes(kBits) : 1;
  typename V::Sums sums[kClasses][kTogether][kStreams];
  const auto each_sum = [](auto&& body) BITBUDGET_INLINE_LAMBDA {
    unroll<kTogether>([&](auto t) BITBUDGET_INLINE_LAMBDA {
      unroll<kStreams>([&](auto stream) BITBUDGET_INLINE_LAMBDA { body(t, stream); });
    });
  };
  unroll<kClasses>([&](auto i) BITBUDGET_INLINE_LAMBDA {
    each_sum([&](auto t, auto stream) BITBUDGET_INLINE_LAMBDA { sums[i][t][stream] = V::zero_sums(); });
  });
  std::int64_t at = 0;
  do {
    typename V::Codes line[kTogether][kBits];
    unroll<kTogether>([&](auto t) BITBUDGET_INLINE_LAMBDA {
      unroll<kBits>([&](auto i) BITBUDGET_INLINE_LAMBDA {
        const std::uint8_t* from = cells[t] + at + i * kLineBytes;
        line[t][i] = V::load(from);
        if constexpr (kFetched) V::fetch(from + ahead);
      });
    });
    unroll<kQuads>([&](auto quad) BITBUDGET_INLINE_LAMBDA {
      constexpr int kQuad = decltype(quad)::value, kClass = kInPlace ? class_of(kBits, kQuad) : 0;
      typename V::Codes codes[kTogether];
      unroll<kTogether>([&](auto t) BITBUDGET_INLINE_LAMBDA {
        codes[t] = kInPlace ? code_in_place<V, kBits, kQuad>(line[t]) : code<V, kBits, kQuad>(line[t]);
      });
      unroll<kStreams>([&](auto stream) BITBUDGET_INLINE_LAMBDA {
        const auto values = V::broadcast(x + 4 * (kQuad * kStreams + stream));
        unroll<kTogether>([&](auto t) BITBUDGET_INLINE_LAMBDA {
          sums[kClass][t][stream] = V::template dot<largest_code(kBits)>(sums[kClass][t][stream], codes[t], values);
        });
      });
    });
    at += kBits * kLineBytes;
    x += kBlockColumns * kStreams;
  } while (--blocks > 0);
  each_sum([&](auto t, auto stream) BITBUDGET_INLINE_LAMBDA {
    result[t][stream] = sums[0][t][stream];
    unroll<kClasses - 1>([&](auto i) BITBUDGET_INLINE_LAMBDA {
      constexpr int kClass = decltype(i)::value + 1;
      result[t][stream] =
          V::plus(result[t][stream], V::template right_sums<shift_of_class(kBits, kClass)>(sums[kClass][t][stream]));
    });
  });
}

// One group of kTogether tiles from `tile` on for few streams, added to `y` [kTogether, tokens]; beyond the last tile it is the last again.
template <class V, int kBits, int kTogether, int kStreams, bool kResidual, bool kFetched>
static BITBUDGET_INLINE void multiply_cells(const Product& product, std::int64_t tile, std::int64_t group, std::int64_t ahead,
                                            typename V::Floats* y) {
  constexpr int kPerToken = kResidual ? 2 : 1, kTokens = kStreams / kPerToken;
  const WeightsLayout& layout = product.weights;
  const std::uint8_t* cells[kTogether];
  for (int t = 0; t < kTogether; ++t)
    cells[t] = product.packed + smaller(tile + t, layout.tiles - 1) * layout.tile_bytes + group * layout.cell_bytes;
  const float* scales = product.scales + group * kTokens;
  const float* input_sums = product.sums + group * kTokens;
  typename V::Sums sums[kTogether][kStreams];
  dot_cells<V, kBits, kTogether, kStreams, kFetched>(cells, ahead, product.values + product.inputs.values(group, 0), layout.blocks, sums);
  unroll<kTogether>([&](auto t) BITBUDGET_INLINE_LAMBDA {
    typename V::Floats scale, zero;
    load_parameters<V>(layout, cells[t], scale, zero);
    unroll<kTokens>([&](auto token) BITBUDGET_INLINE_LAMBDA {
      typename V::Floats& sum = y[t * kTokens + token];
      typename V::Floats total;
      if constexpr (kResidual)
        total = with_residual<V>(sums[t][2 * token], sums[t][2 * token + 1]);
      else
        total = V::floats(sums[t][token]);
      sum = add_cell<V>(sum, total, scale, zero, scales[token], input_sums[token]);
    });
  });
}

// Whether so few streams are multiplied while weights are read in order; more of them make it slower than fetching does.
static constexpr bool can_read_in_order(int bits, int streams) { return streams <= 2 || bits == 8; }

// Few streams: `walk` tiles from `first` on, one after the other.
template <class V, int kBits, int kStreams, bool kResidual>
static BITBUDGET_INLINE void walk_in_order(const Product& product, std::int64_t first, int walk, typename V::Floats* y) {
  constexpr int kTokens = kStreams / (kResidual ? 2 : 1);
  for (int t = 0; t < walk; ++t)
    for (std::int64_t group = 0; group < product.weights.groups.count; ++group)
      multiply_cells<V, kBits, 1, kStreams, kResidual, false>(product, first + t, group, 0, y + t * kTokens);
}

// What to fetch ahead of a cell where `walk` tiles are read side by side: at the end of a tile it is the tile after all of them.
static inline std::int64_t ahead_side_by_side(const WeightsLayout& layout, std::int64_t group, int walk) {
  const bool ends = (group + 1) * layout.cell_bytes + kAhead > layout.tile_bytes;
  return kAhead + (ends ? (walk - 1) * layout.tile_bytes : 0);
}

// The same tiles side by side.
template <class V, int kBits, int kStreams, bool kResidual>
static BITBUDGET_INLINE void walk_side_by_side(const Product& product, std::int64_t first, int walk, typename V::Floats* y) {
  constexpr int kTokens = kStreams / (kResidual ? 2 : 1);
  for (std::int64_t group = 0; group < product.weights.groups.count; ++group) {
    const std::int64_t ahead = ahead_side_by_side(product.weights, group, V::kWalk);
    for (int t = 0; t < walk; ++t)
      multiply_cells<V, kBits, 1, kStreams, kResidual, true>(product, first + t, group, ahead, y + t * kTokens);
  }
}

// Few streams: tiles [first, last), kWalk of them at a time.
template <class V, int kBits, int kStreams, bool kResidual>
static void multiply_narrow(const Product& product, std::int64_t first, std::int64_t last) {
  constexpr int kTokens = kStreams / (kResidual ? 2 : 1);
  const bool sparse = product.outliers.starts != nullptr;  // then there is one token
  // All outliers come before the first code: x then stays in the first-level cache, and codes are read in one go.
  const Memory memory(sparse ? (last - first) * kTileRows * static_cast<std::int64_t>(sizeof(float)) : 0);
  auto* sums = reinterpret_cast<float*>(memory.data());
  if (sparse) {
    const std::int64_t origin = first * kTileRows, rows = smaller(last * kTileRows, product.weights.rows);
    std::memset(sums, 0, static_cast<std::size_t>((last - first) * kTileRows) * sizeof(float));
    for (std::int64_t row = origin; row < rows; ++row) sums[row - origin] = sum_outliers<V>(product, row);
  }
  for (; first < last; first += V::kWalk) {
    const int walk = static_cast<int>(smaller(V::kWalk, last - first));
    typename V::Floats y[V::kWalk * kTokens];
    for (int i = 0; i < walk * kTokens; ++i) {  // with outliers, one of every tile
      y[i] = sparse ? V::load_fp32(sums) : V::splat(0.0f);
      sums += sparse ? kTileRows : 0;
    }
    if (can_read_in_order(kBits, kStreams) && product.in_order)
      walk_in_order<V, kBits, kStreams, kResidual>(product, first, walk, y);
    else
      walk_side_by_side<V, kBits, kStreams, kResidual>(product, first, walk, y);
    for (int t = 0; t < walk; ++t)
      for (int token = 0; token < kTokens; ++token) write_rows<V>(product, first + t, token, y[t * kTokens + token]);
  }
}

// One block of more streams: tiles [first, last), some of them at once.
template <class V, int kBits, int kStreams, bool kResidual>
static void multiply_block_of_streams(const Product& product, std::int64_t first, std::int64_t last) {
  constexpr int kTokens = kStreams / (kResidual ? 2 : 1);
  constexpr int kTogether = kBits == 8 ? V::kTiles : V::kTogether;  // codes of 8 bits are taken one line at a time
  for (; first < last; first += kTogether) {
    typename V::Floats y[kTogether * kTokens];
    for (auto& sum : y) sum = V::splat(0.0f);
    for (std::int64_t group = 0; group < product.weights.groups.count; ++group) {
      // Codes of 8 bits come as fast as memory gives them; a processor that reads in order is only held up by being told.
      if (kBits == 8 && product.in_order)
        multiply_cells<V, kBits, kTogether, kStreams, kResidual, kBits != 8>(product, first, group, 0, y);
      else
        multiply_cells<V, kBits, kTogether, kStreams, kResidual, true>(product, first, group,
                                                                       ahead_side_by_side(product.weights, group, kTogether), y);
    }
    const int count = static_cast<int>(smaller(kTogether, last - first));
    for (int t = 0; t < count; ++t)
      for (int token = 0; token < kTokens; ++token) write_rows<V>(product, first + t, token, y[t * kTokens + token]);
  }
}

// Sums [tokens, count, 16] of `count` tiles from `tile` on to y.
template <class V>
static void write_panel(const Product& product, std::int64_t tile, int count, std::int64_t first_token, std::int64_t tokens,
                        const float* sums) {
  const std::int64_t tiles = smaller(count, product.weights.tiles - tile);
  for (std::int64_t token = 0; token < tokens; ++token)
    for (std::int64_t t = 0; t < tiles; ++t)
      write_rows<V>(product, tile + t, first_token + token, V::load_fp32(sums + (token * count + t) * kTileRows));
}

// Codes of one cell to one byte each, in the order of lines that multiply_block reads: `padded` columns × 16 rows.
template <class V, int kBits>
static void unpack_codes(const std::uint8_t* cell, std::int64_t blocks, std::uint8_t* out) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    typename V::Codes line[kBits];
    unroll<kBits>([&](auto i) BITBUDGET_INLINE_LAMBDA { line[i] = V::load(cell + i * kLineBytes); });
    unroll<kQuads>([&](auto quad) BITBUDGET_INLINE_LAMBDA {
      constexpr int kQuad = decltype(quad)::value;
      V::store(out + kQuad * kLineBytes, code<V, kBits, kQuad>(line));
    });
    cell += kBits * kLineBytes;
    out += kQuads * kLineBytes;
  }
}

// The same for one group of `count` tiles from `tile` on; beyond the last tile it is the last again. lines: where each tile's codes are.
template <class V, int kBits>
static void unpack_tiles(const Product& product, std::int64_t tile, int count, std::int64_t group, std::uint8_t* codes,
                         const std::uint8_t** lines) {
  const WeightsLayout& layout = product.weights;
  const std::int64_t ahead = ceil_div(kAhead, layout.cell_bytes) * layout.cell_bytes;
  // What follows the end of a tile here is the tile after those that are unpacked now.
  const std::int64_t over = group * layout.cell_bytes + ahead >= layout.tile_bytes ? (count - 1) * layout.tile_bytes : 0;
  for (int t = 0; t < count; ++t, codes += layout.groups.padded * kTileRows) {
    const std::int64_t at = smaller(tile + t, layout.tiles - 1);
    const std::uint8_t* cell = product.packed + at * layout.tile_bytes + group * layout.cell_bytes;
    // A processor that reads in order finds 8-bit codes by itself; others it does not, for unpacking them interrupts the reading.
    for (std::int64_t byte = 0; byte < layout.cell_bytes; byte += kLineBytes) {
      const std::uint8_t* next = cell + ahead + over + byte;
      if (!product.in_order) V::fetch(next);
      else if (kBits != 8) V::fetch_outer(next);
    }
    lines[t] = cell;  // 8-bit codes lie as they are needed
    if constexpr (kBits != 8) {
      unpack_codes<V, kBits>(cell, layout.blocks, codes);
      lines[t] = codes;
    }
  }
}

// One group of kTiles tiles against one block of kStreams streams; y: [tokens, kTiles, 16].
template <class V, int kBits, int kStreams, bool kResidual>
static void multiply_block(const Product& product, std::int64_t tile, std::int64_t group, const std::uint8_t* const* lines,
                           std::int64_t first_token, float* y) {
  constexpr int kPerToken = kResidual ? 2 : 1, kTokens = kStreams / kPerToken;
  typename V::Sums sums[V::kTiles][kStreams];
  unroll<V::kTiles>([&](auto t) BITBUDGET_INLINE_LAMBDA {
    unroll<kStreams>([&](auto stream) BITBUDGET_INLINE_LAMBDA { sums[t][stream] = V::zero_sums(); });
  });
  const std::int8_t* x = product.values + product.inputs.values(group, first_token);
  const std::int64_t bytes = product.weights.groups.padded / 4 * kLineBytes;
  std::int64_t at = 0;
  do {  // not `for`: a loop that might not run keeps compilers from leaving the sums in registers
    typename V::Codes codes[V::kTiles];
    unroll<V::kTiles>([&](auto t) BITBUDGET_INLINE_LAMBDA { codes[t] = V::load(lines[t] + at); });
    unroll<kStreams>([&](auto stream) BITBUDGET_INLINE_LAMBDA {
      const auto values = V::broadcast(x + 4 * stream);
      unroll<V::kTiles>([&](auto t) BITBUDGET_INLINE_LAMBDA {
        sums[t][stream] = V::template dot<largest_code(kBits)>(sums[t][stream], codes[t], values);
      });
    });
    at += kLineBytes;
    x += 4 * kStreams;
  } while (at < bytes);
  const float* scales = product.scales + group * product.inputs.n + first_token;
  const float* input_sums = product.sums + group * product.inputs.n + first_token;
  unroll<V::kTiles>([&](auto t) BITBUDGET_INLINE_LAMBDA {
    const std::int64_t last = product.weights.tiles - 1, at = tile + t < last ? tile + t : last;
    typename V::Floats scale, zero;
    load_parameters<V>(product.weights, product.packed + at * product.weights.tile_bytes + group * product.weights.cell_bytes, scale, zero);
    unroll<kTokens>([&](auto token) BITBUDGET_INLINE_LAMBDA {
      float* place = y + (token * V::kTiles + t) * kTileRows;
      typename V::Floats total;
      if constexpr (kResidual)
        total = with_residual<V>(sums[t][2 * token], sums[t][2 * token + 1]);
      else
        total = V::floats(sums[t][token]);
      V::store_fp32(place, add_cell<V>(V::load_fp32(place), total, scale, zero, scales[token], input_sums[token]));
    });
  });
}

// The same with the number of tokens known at run time, 1 … kStreams / streams per token.
template <class V, int kBits, bool kResidual>
static void multiply_tokens(const Product& product, std::int64_t tile, std::int64_t group, const std::uint8_t* const* lines,
                            const TokenBlock& block, float* y) {
  constexpr int kPerToken = kResidual ? 2 : 1;
  unroll<V::kStreams / kPerToken>([&](auto i) BITBUDGET_INLINE_LAMBDA {
    constexpr int kTokens = decltype(i)::value + 1;
    if (block.count == kTokens) multiply_block<V, kBits, kTokens * kPerToken, kResidual>(product, tile, group, lines, block.first, y);
  });
}

template <class V>
struct Scratch {  // of one thread
  std::uint8_t* codes;  // [kTiles, padded, 16]
  float* y;             // [tokens, kTiles, 16]
};

// Many streams: blocks of tokens [first, last) against tiles [tile, tile + kTiles); each group's codes are unpacked once for all of them.
template <class V, int kBits, bool kResidual>
static void multiply_panel(const Product& product, std::int64_t tile, std::int64_t first, std::int64_t last, const Scratch<V>& scratch) {
  const WeightsLayout& layout = product.weights;
  const std::int64_t origin = product.inputs.block(first).first;
  const TokenBlock end = product.inputs.block(last - 1);
  const std::int64_t tokens = end.first + end.count - origin;
  std::memset(scratch.y, 0, static_cast<std::size_t>(tokens * V::kTiles * kTileRows) * sizeof(float));
  for (std::int64_t group = 0; group < layout.groups.count; ++group) {
    const std::uint8_t* lines[V::kTiles];
    unpack_tiles<V, kBits>(product, tile, V::kTiles, group, scratch.codes, lines);
    for (std::int64_t index = first; index < last; ++index) {
      const TokenBlock block = product.inputs.block(index);
      multiply_tokens<V, kBits, kResidual>(product, tile, group, lines, block, scratch.y + (block.first - origin) * V::kTiles * kTileRows);
    }
  }
  write_panel<V>(product, tile, V::kTiles, origin, tokens, scratch.y);
}

template <class V, int kBits, bool kResidual>
static void multiply_wide(const Product& product) {
  const WeightsLayout& layout = product.weights;
  const InputsLayout& inputs = product.inputs;
  const std::int64_t per_block = V::kStreams / inputs.streams;
  const std::int64_t row_bytes = layout.groups.count * layout.groups.padded * inputs.streams;
  const std::int64_t rounds = ceil_div(inputs.blocks, kCachedInputs / (row_bytes * per_block) + 1);
  const std::int64_t blocks = ceil_div(inputs.blocks, rounds);
  const std::int64_t codes_bytes = V::kTiles * layout.groups.padded * kTileRows;
  const std::int64_t y_bytes = blocks * per_block * V::kTiles * kTileRows * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t panels = ceil_div(layout.tiles, V::kTiles);
  const int threads = static_cast<int>(smaller(product.threads, panels));
  const Memory memory(threads * (codes_bytes + y_bytes));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; ++thread) {
    std::uint8_t* own = memory.data() + thread * (codes_bytes + y_bytes);
    const Scratch<V> scratch{own, reinterpret_cast<float*>(own + codes_bytes)};
    for (std::int64_t first = 0; first < inputs.blocks; first += blocks)
      for (std::int64_t panel = panels * thread / threads; panel < panels * (thread + 1) / threads; ++panel)
        multiply_panel<V, kBits, kResidual>(product, panel * V::kTiles, first, smaller(first + blocks, inputs.blocks), scratch);
  }
}

// One block of streams, whose codes stay in registers.
template <class V, int kBits, int kStreams, bool kResidual>
static void multiply_threads(const Product& product) {
  const std::int64_t tiles = product.weights.tiles;
  const int threads = static_cast<int>(smaller(product.threads, tiles));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; ++thread) {
    const std::int64_t first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
    if constexpr (kStreams <= kNarrow)
      multiply_narrow<V, kBits, kStreams, kResidual>(product, first, last);
    else
      multiply_block_of_streams<V, kBits, kStreams, kResidual>(product, first, last);
  }
}

template <class V, int kBits, bool kResidual>
static void multiply_tokens_of(const Product& product) {
  constexpr int kPerToken = kResidual ? 2 : 1, kMost = V::kTogether ? V::kStreams : kNarrow;
  if (product.inputs.n * kPerToken > kMost) return multiply_wide<V, kBits, kResidual>(product);
  unroll<kMost / kPerToken>([&](auto i) {
    constexpr int kTokens = decltype(i)::value + 1;
    if (product.inputs.n == kTokens) multiply_threads<V, kBits, kTokens * kPerToken, kResidual>(product);
  });
}

template <class V, int kBits>
static void multiply_bits(const Product& product) {
  product.inputs.streams == 1 ? multiply_tokens_of<V, kBits, false>(product) : multiply_tokens_of<V, kBits, true>(product);
}

template <class V>
static void multiply(const Product& product) {
  switch (product.weights.bits) {
    case 2:
      return multiply_bits<V, 2>(product);
    case 3:
      return multiply_bits<V, 3>(product);
    case 4:
      return multiply_bits<V, 4>(product);
    case 5:
      return multiply_bits<V, 5>(product);
    case 6:
      return multiply_bits<V, 6>(product);
    case 8:
      return multiply_bits<V, 8>(product);
  }
}

template <class V>
static void quantize(const Quantization& task) {
  const std::int64_t groups = task.inputs.groups.count, padded = task.inputs.groups.padded;
  const int threads = task.threads;
  const Memory memory(threads * 2 * padded);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; ++thread) {
    auto* row = reinterpret_cast<std::int8_t*>(memory.data() + thread * 2 * padded);
    const std::int64_t blocks = task.inputs.blocks;
    for (std::int64_t index = blocks * thread / threads; index < blocks * (thread + 1) / threads; ++index) {
      const TokenBlock block = task.inputs.block(index);
      for (std::int64_t token = block.first; token < block.first + block.count; ++token)
        for (std::int64_t group = 0; group < groups; ++group)
          quantize_group<V>(task, block, token, group, row);
    }
  }
}

template <class V>
static constexpr Kernels kernels_of() {
  static_assert(V::kStreams >= kNarrow, "a block of tokens has to hold what the narrow product takes");
  return {V::kStreams, multiply<V>, add_outliers_of_tokens<V>, quantize<V>, nearest<V>, range_errors<V>};
}

}  // namespace bitbudget
