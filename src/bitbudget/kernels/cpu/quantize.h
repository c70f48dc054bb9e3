// Rounding of activations to int8 per token and group. Plain C++ that compilers turn into vectors of the flags they are given; the same
// operations everywhere, so that all instruction sets multiply the same integers.

#pragma once

#include <cstring>

#include "half.h"
#include "kernel_table.h"

namespace bitbudget {

// The float whose last mantissa bit is worth 1: adding it rounds to the nearest integer, ties to even, and leaves it in the low bits.
static constexpr float kRounder = 12582912.0f;  // 1.5 · 2^23
static constexpr std::int32_t kRounderBits = 0x4b400000;
static constexpr float kLargestFloat = 3.402823466e38f;
static constexpr float kNothing = 1e-30f;  // a group without a larger magnitude is taken for zeros, which keeps quotients normal
static constexpr float kResidualSteps = 256.0f;  // a power of two: scales stay exact; a residual of +½ is one step short

static inline std::int32_t rounded_bits(float value) {
  std::int32_t bits;
  const float sum = value + kRounder;
  std::memcpy(&bits, &sum, sizeof bits);
  return bits - kRounderBits;
}

static inline std::int32_t largest_magnitude_bits(const float* x, std::int64_t count) {
  std::int32_t largest = 0;  // magnitudes order like their bits, infinity and NaN above all numbers
  for (std::int64_t i = 0; i < count; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

template <class V>
static std::int32_t quantize_values(const float* __restrict x, std::int64_t count, float inverse, std::int8_t* __restrict values) {
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t value = rounded_bits(x[i] * inverse);
    values[i] = static_cast<std::int8_t>(value);
    sum += value;
  }
  return sum;
}

template <class V>
static std::int32_t quantize_residuals(const float* __restrict x, std::int64_t count, float inverse,
                                       const std::int8_t* __restrict values, std::int8_t* __restrict residuals) {
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float rest = (x[i] * inverse - static_cast<float>(values[i])) * kResidualSteps;
    const std::int32_t value = rounded_bits(rest > 127.0f ? 127.0f : rest);
    residuals[i] = static_cast<std::int8_t>(value);
    sum += value;
  }
  return sum;
}

// Four columns of one stream, then of the next: `streams` in the block.
static inline void interleave(const std::int8_t* row, std::int64_t columns, std::int64_t streams, std::int8_t* out) {
  for (std::int64_t column = 0; column < columns; column += 4) std::memcpy(out + column * streams, row + column, 4);
}

template <class V>
static void quantize_group(const Quantization& task, const TokenBlock& block, std::int64_t token, std::int64_t group,
                           std::int8_t* row /*scratch [2, padded]*/) {
  const std::int64_t first = group * task.group, count = smaller(task.group, task.columns - first);
  const std::int64_t place = group * task.inputs.n + token, padded = task.inputs.groups.padded;
  const float* x = task.x + token * task.stride + first;
  const std::int64_t streams = block.count * task.inputs.streams;
  std::int8_t* out = task.values + task.inputs.values(group, block.first) + (token - block.first) * task.inputs.streams * 4;

  const float largest = float_of(static_cast<std::uint32_t>(largest_magnitude_bits(x, count)));
  const bool finite = largest <= kLargestFloat, counts = finite && largest >= kNothing;
  const float inverse = 127.0f / largest, scale = counts ? largest / 127.0f : finite ? 1.0f : largest * 0.0f;
  std::memset(row, 0, static_cast<std::size_t>(padded));
  float sum = 0.0f;
  if (counts) sum = static_cast<float>(quantize_values<V>(x, count, inverse, row));
  interleave(row, padded, streams, out);
  if (task.inputs.streams == 2) {
    std::int8_t* residuals = row + padded;
    std::memset(residuals, 0, static_cast<std::size_t>(padded));
    sum *= kResidualSteps;
    if (counts) sum += static_cast<float>(quantize_residuals<V>(x, count, inverse, row, residuals));
    interleave(residuals, padded, streams, out + 4);
  }
  task.scales[place] = task.inputs.streams == 2 ? scale / kResidualSteps : scale;
  task.sums[place] = sum;
}

}  // namespace bitbudget
