// Additive outliers: packing for the dense product, and a product of their own.

#include <cstring>

#include "half.h"
#include "layout.h"

namespace bitbudget {
namespace {

// Four sums, so that the products of a row do not wait for each other.
float sparse_dot(const float* x, const std::int32_t* columns, const float* values, std::int64_t count) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) sums[lane] += values[i + lane] * x[columns[i + lane]];
  for (; i < count; ++i) sums[0] += values[i] * x[columns[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

bool packable_outliers(const std::int32_t* columns, const float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    if (columns[i] > 0xffff || bits_of(from_fp16(to_fp16(values[i]))) != bits_of(values[i])) return false;
  return true;
}

std::size_t packed_outliers_size(std::int64_t rows, const std::int32_t* rows_start) {
  return static_cast<std::size_t>(outliers_layout(rows, rows_start[rows]).bytes);
}

void pack_outliers(std::int64_t rows, const std::int32_t* rows_start, const std::int32_t* columns, const float* values, void* packed) {
  const std::int64_t count = rows_start[rows];
  const OutliersLayout layout = outliers_layout(rows, count);
  auto* bytes = static_cast<std::uint8_t*>(packed);
  std::memset(bytes, 0, static_cast<std::size_t>(layout.bytes));
  std::memcpy(bytes, rows_start, static_cast<std::size_t>(rows + 1) * sizeof(std::int32_t));
  auto* packed_columns = reinterpret_cast<std::uint16_t*>(bytes + layout.columns);
  auto* packed_values = reinterpret_cast<std::uint16_t*>(bytes + layout.values);
  for (std::int64_t i = 0; i < count; ++i) {
    packed_columns[i] = static_cast<std::uint16_t>(columns[i]);
    packed_values[i] = to_fp16(values[i]);
  }
}

void add_outliers(const float* x, std::int64_t n, std::int64_t stride, const std::int32_t* rows_start, const std::int32_t* columns,
                  const float* values, std::int64_t rows, const std::int32_t* order, float* y, std::int64_t y_stride, int threads) {
#pragma omp parallel for num_threads(threads < 1 ? 1 : threads) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t first = rows_start[row], count = rows_start[row + 1] - first;
    if (count == 0) continue;
    float* out = y + (order ? order[row] : row);
    for (std::int64_t token = 0; token < n; ++token)
      out[token * y_stride] += sparse_dot(x + token * stride, columns + first, values + first, count);
  }
}

}  // namespace bitbudget
