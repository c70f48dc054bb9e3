// Outliers on top of the dense product: of one token before its codes are read in order, or while they are read side by side; of
// several in a pass of their own. `V` is an instruction set (multiply.h).

#pragma once

#include <cstring>

#include "kernel_table.h"
#include "unroll.h"

namespace bitbudget {

static constexpr std::int64_t kAcross = kTileRows;     // tokens side by side in a register of floats
static constexpr std::int64_t kBlocksLaidOut = 4;      // of so many tokens, whose inputs are laid out at once

// Steps [first, last) of a tile's outliers for one token; the steps `ahead` of them are fetched.
template <class V>
static BITBUDGET_INLINE typename V::Floats add_steps(typename V::Floats y, const std::uint8_t* steps, std::int64_t first, std::int64_t last,
                                                     std::int64_t ahead, const float* x) {
  for (std::int64_t step = first; step < last; ++step) {
    const std::uint8_t* line = steps + step * kLineBytes;
    V::fetch(line + ahead * kLineBytes);
    y = V::add_product(y, V::load_fp16(line + kTileRows * 2), V::gather(x, line));
  }
  return y;
}

// What the outliers of tiles [first, last) add for the one token: sums [last - first, 16]. All tiles before their codes are read: x then
// stays in the first-level cache, and the codes are read in one go.
template <class V>
static void sum_outliers(const Product& product, std::int64_t first, std::int64_t last, float* sums) {
  const std::int64_t* start = product.outlier_starts;
  for (std::int64_t tile = first; tile < last; ++tile, sums += kTileRows)
    V::store_fp32(sums, add_steps<V>(V::splat(0.0f), product.outliers, start[tile], start[tile + 1], 0, product.x));
}

// Inputs of `count` tokens from `token` on as [columns, kAcross], zeros beyond the last.
static inline void lay_across(const Product& product, std::int64_t token, std::int64_t count, std::int64_t first_column,
                              std::int64_t last_column, float* across) {
  const float* x = product.x + token * product.x_stride;
  for (std::int64_t column = first_column; column < last_column; ++column)
    for (std::int64_t i = 0; i < kAcross; ++i) across[column * kAcross + i] = i < count ? x[i * product.x_stride + column] : 0.0f;
}

// A tile's outliers for the tokens that lie across, added to y. One load of an outlier's column serves all tokens, where gathering would
// look for it once for each.
template <class V>
static void add_steps_across(const Product& product, std::int64_t tile, std::int64_t token, std::int64_t count, const float* across) {
  typename V::Floats sums[kTileRows];
  unroll<kTileRows>([&](auto row) BITBUDGET_INLINE_LAMBDA { sums[row] = V::splat(0.0f); });
  for (std::int64_t step = product.outlier_starts[tile]; step < product.outlier_starts[tile + 1]; ++step) {
    const std::uint8_t* line = product.outliers + step * kLineBytes;
    std::uint16_t columns[kTileRows];
    std::memcpy(columns, line, sizeof columns);
    alignas(64) float values[kTileRows];
    V::store_fp32(values, V::load_fp16(line + sizeof columns));
    unroll<kTileRows>([&](auto row) BITBUDGET_INLINE_LAMBDA {
      sums[row] = V::add_product(sums[row], V::load_fp32(across + columns[row] * kAcross), V::splat(values[row]));
    });
  }
  alignas(64) float found[kTileRows][kAcross];
  unroll<kTileRows>([&](auto row) BITBUDGET_INLINE_LAMBDA { V::store_fp32(found[row], sums[row]); });
  const std::int64_t first = tile * kTileRows, rows = smaller(kTileRows, product.weights.rows - first);
  for (std::int64_t i = 0; i < count; ++i) {
    float* y = product.y + (token + i) * product.stride;
    for (std::int64_t row = 0; row < rows; ++row) y[product.order ? product.order[first + row] : first + row] += found[row][i];
  }
}

// All outliers of a product whose dense part y already holds.
template <class V>
static void add_outliers_of_tokens(const Product& product) {
  const std::int64_t n = product.inputs.n, columns = product.weights.columns, tiles = product.weights.tiles;
  const std::int64_t most = smaller(kBlocksLaidOut, ceil_div(n, kAcross)), block_floats = columns * kAcross;
  const Memory memory(most * block_floats * static_cast<std::int64_t>(sizeof(float)));
  auto* across = reinterpret_cast<float*>(memory.data());
  const int threads = static_cast<int>(smaller(product.threads, tiles));
  for (std::int64_t token = 0; token < n; token += kBlocksLaidOut * kAcross) {
    const std::int64_t blocks = smaller(most, ceil_div(n - token, kAcross));
    const auto tokens_of = [&](std::int64_t block) { return smaller(kAcross, n - token - block * kAcross); };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread)
      for (std::int64_t block = 0; block < blocks; ++block)
        lay_across(product, token + block * kAcross, tokens_of(block), columns * thread / threads, columns * (thread + 1) / threads,
                   across + block * block_floats);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread)
      for (std::int64_t block = 0; block < blocks; ++block)
        for (std::int64_t tile = tiles * thread / threads; tile < tiles * (thread + 1) / threads; ++tile)
          add_steps_across<V>(product, tile, token + block * kAcross, tokens_of(block), across + block * block_floats);
  }
}

}  // namespace bitbudget
