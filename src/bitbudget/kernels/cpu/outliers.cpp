// Additive outliers: a sparse matrix times x, on top of the dense product.

#include "kernels.h"

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
