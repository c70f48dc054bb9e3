// Outliers on top of the dense product: of one token before its codes are read, of several in a pass of their own. `V` is an instruction
// set (multiply.h).

#pragma once

#include <type_traits>

#include "kernel_table.h"
#include "unroll.h"

namespace bitbudget {

static constexpr std::int64_t kAcross = kTileRows;     // tokens side by side in a register of floats
static constexpr int kTurns = 4;                       // sums of a row
static constexpr std::int64_t kOutliersAhead = 1024;   // outliers that are fetched ahead of their use: a page ends after 2048
static constexpr std::int64_t kBlocksLaidOut = 4;      // of so many tokens, whose inputs are laid out at once

// each(turn, column, value) for the outliers of a row, turns 0 … kTurns − 1 again and again: sums of their own, so that an addition
// does not wait for the one before.
template <class V, class Each>
static BITBUDGET_INLINE void each_outlier(const SparseRows& outliers, std::int64_t row, Each&& each) {
  const std::int64_t end = outliers.starts[row + 1];
  for (std::int64_t first = outliers.starts[row]; first < end; first += kTileRows) {
    const std::uint16_t* columns = outliers.columns + first;
    V::fetch(columns + kOutliersAhead);
    V::fetch(outliers.values + first + kOutliersAhead);
    alignas(64) float values[kTileRows];
    V::store_fp32(values, V::load_fp16(outliers.values + first));
    const std::int64_t count = smaller(kTileRows, end - first);
    std::int64_t i = 0;
    for (; i + kTurns <= count; i += kTurns)
      unroll<kTurns>([&](auto turn) BITBUDGET_INLINE_LAMBDA { each(turn, columns[i + turn], values[i + turn]); });
    for (; i < count; ++i) each(std::integral_constant<int, 0>{}, columns[i], values[i]);
  }
}

// What the outliers of a row add for the one token.
template <class V>
static BITBUDGET_INLINE float sum_outliers(const Product& product, std::int64_t row) {
  float sums[kTurns] = {};
  each_outlier<V>(product.outliers, row,
                  [&](auto turn, std::uint16_t column, float value) BITBUDGET_INLINE_LAMBDA { sums[turn] += value * product.x[column]; });
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Inputs of `count` tokens from `token` on as [columns, kAcross], zeros beyond the last.
static inline void lay_across(const Product& product, std::int64_t token, std::int64_t count, std::int64_t first_column,
                              std::int64_t last_column, float* across) {
  const float* x = product.x + token * product.x_stride;
  for (std::int64_t column = first_column; column < last_column; ++column)
    for (std::int64_t i = 0; i < kAcross; ++i) across[column * kAcross + i] = i < count ? x[i * product.x_stride + column] : 0.0f;
}

// The outliers of some rows, at most a tile, for the tokens that lie across, added to y. One load of an outlier's column serves all tokens.
template <class V>
static void add_rows_across(const Product& product, std::int64_t first, std::int64_t last, std::int64_t token, std::int64_t count,
                            const float* across) {
  alignas(64) float found[kTileRows][kAcross];
  for (std::int64_t row = first; row < last; ++row) {
    typename V::Floats sums[kTurns] = {V::splat(0.0f), V::splat(0.0f), V::splat(0.0f), V::splat(0.0f)};
    each_outlier<V>(product.outliers, row, [&](auto turn, std::uint16_t column, float value) BITBUDGET_INLINE_LAMBDA {
      sums[turn] = V::add_product(sums[turn], V::load_fp32(across + column * kAcross), V::splat(value));
    });
    const auto plus = [](const auto& a, const auto& b) BITBUDGET_INLINE_LAMBDA { return V::add_product(a, b, V::splat(1.0f)); };
    V::store_fp32(found[row - first], plus(plus(sums[0], sums[1]), plus(sums[2], sums[3])));
  }
  for (std::int64_t i = 0; i < count; ++i) {  // by tokens: outputs of one token lie together, those of one row often in one set of a cache
    float* y = product.y + (token + i) * product.stride;
    for (std::int64_t row = first; row < last; ++row) y[product.order ? product.order[row] : row] += found[row - first][i];
  }
}

// All outliers of a product whose dense part y already holds.
template <class V>
static void add_outliers_of_tokens(const Product& product) {
  const std::int64_t n = product.inputs.n, columns = product.weights.columns, rows = product.weights.rows, tiles = product.weights.tiles;
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
          add_rows_across<V>(product, tile * kTileRows, smaller((tile + 1) * kTileRows, rows), token + block * kAcross, tokens_of(block),
                             across + block * block_floats);
  }
}

}  // namespace bitbudget
