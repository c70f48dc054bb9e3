// Rounding of weights to the nearest code, and the error of a layer's output for several tries of the range of every group: δᵀ H δ, δ
// being what rounding changes. There 16 rows lie side by side, so a row's sum never depends on its neighbours or on the width of a
// register.

#pragma once

#include "half.h"
#include "kernel_table.h"
#include "quantize.h"
#include "unroll.h"

namespace bitbudget {

static constexpr int kGramRows = 4;  // of H that are multiplied while a column's δ are in registers

// scale · (code − zero) for the nearest code from 0 to `top`, in the operations of the plain twin, `Grid.nearest`.
static BITBUDGET_INLINE float nearest_value(float weight, float scale, float zero, float top) {
  const float place = weight / scale + zero;
  const float within = place < 0.0f ? 0.0f : place > top ? top : place;  // first clamped, then rounded: the ends are integers
  return ((within + kRounder) - kRounder - zero) * scale;
}

template <class V>
static void nearest(const Rounding& task) {
  const std::int64_t groups = task.columns / task.group;
  for (std::int64_t place = 0; place < task.rows * groups; ++place) {
    const float scale = task.scale[place], zero = task.zero[place], top = task.top;
    const float* __restrict weights = task.weights + place * task.group;
    float* __restrict values = task.values + place * task.group;
    for (std::int64_t column = 0; column < task.group; ++column) values[column] = nearest_value(weights[column], scale, zero, top);
  }
}

// δ of one try: [group][16 rows], `apart` floats from one column to the next.
template <class V>
static void rounding_errors(const float* __restrict weights, std::int64_t columns, const float* __restrict scale,
                            const float* __restrict zero, float top, float* __restrict delta, std::int64_t apart) {
  for (std::int64_t column = 0; column < columns; ++column)
    for (int row = 0; row < kTileRows; ++row) {
      const float weight = weights[column * kTileRows + row];
      delta[column * apart + row] = nearest_value(weight, scale[row], zero[row], top) - weight;
    }
}

// Rows [first, first + kRows) of the upper triangle of H with kTries columns of δ: total += 2 δ_i (½ Σ_near H_ij δ_j + Σ_far H_ij δ_j).
template <class V, int kTries, int kRows>
static BITBUDGET_INLINE void add_gram_rows(const float* gram, std::int64_t columns, std::int64_t first, const float* delta,
                                           typename V::Floats (&total)[kTries]) {
  using Floats = typename V::Floats;
  Floats sum[kRows][kTries];
  unroll<kRows>([&](auto row) BITBUDGET_INLINE_LAMBDA {
    unroll<kTries>([&](auto t) BITBUDGET_INLINE_LAMBDA { sum[row][t] = V::splat(0.0f); });
  });
  const auto add = [&](std::int64_t column, float factor) BITBUDGET_INLINE_LAMBDA {
    Floats change[kTries];
    unroll<kTries>([&](auto t) BITBUDGET_INLINE_LAMBDA { change[t] = V::load_fp32(delta + (column * kTries + t) * kTileRows); });
    unroll<kRows>([&](auto row) BITBUDGET_INLINE_LAMBDA {
      const Floats entry = V::splat(factor * gram[(first + row) * columns + column]);
      unroll<kTries>([&](auto t) BITBUDGET_INLINE_LAMBDA { sum[row][t] = V::add_product(sum[row][t], entry, change[t]); });
    });
  };
  for (std::int64_t column = first; column < first + kRows; ++column) add(column, 0.5f);
  for (std::int64_t column = first + kRows; column < columns; ++column) add(column, 1.0f);
  unroll<kRows>([&](auto row) BITBUDGET_INLINE_LAMBDA {
    unroll<kTries>([&](auto t) BITBUDGET_INLINE_LAMBDA {
      const Floats change = V::load_fp32(delta + ((first + row) * kTries + t) * kTileRows);
      total[t] = V::add_product(total[t], V::times(V::splat(2.0f), change), sum[row][t]);
    });
  });
}

// δᵀ H δ of kTries tries, whose δ lie side by side: [columns][kTries][16 rows].
template <class V, int kTries>
static void gram_errors(const float* gram, std::int64_t columns, const float* delta, float* errors /*[kTries][16]*/) {
  typename V::Floats total[kTries];
  unroll<kTries>([&](auto t) { total[t] = V::splat(0.0f); });
  std::int64_t first = 0;
  for (; first + kGramRows <= columns; first += kGramRows) add_gram_rows<V, kTries, kGramRows>(gram, columns, first, delta, total);
  for (; first < columns; ++first) add_gram_rows<V, kTries, 1>(gram, columns, first, delta, total);
  unroll<kTries>([&](auto t) { V::store_fp32(errors + t * kTileRows, total[t]); });
}

// `count` rows of a table whose rows are `stride` apart, one value each; 1 where there are no more rows.
static inline void gather_rows(const float* table, std::int64_t stride, std::int64_t count, float* values /*[16]*/) {
  for (int row = 0; row < kTileRows; ++row) values[row] = row < count ? table[row * stride] : 1.0f;
}

template <class V>
static void range_errors(const RangeTries& task) {
  constexpr int kTries = V::kTries;
  const std::int64_t group = task.group, groups = task.columns / group, apart = kTries * kTileRows;
  const Memory memory(static_cast<std::int64_t>(sizeof(float)) * (group * (kTileRows + apart) + apart));
  auto* weights = reinterpret_cast<float*>(memory.data());
  float *delta = weights + group * kTileRows, *errors = delta + group * apart;
  alignas(kLineBytes) float scale[kTileRows], zero[kTileRows];
  for (std::int64_t place = 0; place < groups; ++place)
    for (std::int64_t first = 0; first < task.rows; first += kTileRows) {
      const std::int64_t count = smaller(kTileRows, task.rows - first);
      const float* tile = task.weights + first * task.columns + place * group;
      for (std::int64_t column = 0; column < group; ++column)
        for (int row = 0; row < kTileRows; ++row) weights[column * kTileRows + row] = row < count ? tile[row * task.columns + column] : 0.0f;
      for (std::int64_t done = 0; done < task.tries; done += kTries) {
        const auto cell = [&](int t) {  // of the tables [tries, rows, groups]; the last try stands in for those that are missing
          return (smaller(done + t, task.tries - 1) * task.rows + first) * groups + place;
        };
        for (int t = 0; t < kTries; ++t) {
          gather_rows(task.scale + cell(t), groups, count, scale);
          gather_rows(task.zero + cell(t), groups, count, zero);
          rounding_errors<V>(weights, group, scale, zero, task.top, delta + t * kTileRows, apart);
        }
        gram_errors<V, kTries>(task.gram + place * group * group, group, delta, errors);
        for (int t = 0; t < kTries; ++t)
          for (std::int64_t row = 0; row < count; ++row) task.errors[cell(t) + row * groups] = errors[t * kTileRows + row];
      }
    }
}

}  // namespace bitbudget
