// A packed weight that multiplies, and what its inputs become. One call from Python does all of a product: on a fast machine a call
// takes as long as a small product, and what it looks at comes from memory, for the weights have gone through the caches since.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/layout.h"

namespace {

// The tokens of one call, fp32.
struct Rows {
  const float* x;
  std::int64_t n, stride, columns;
};

// What layers make of one tensor that they receive: quantized each way once, for whoever asks next. Several threads may ask at once.
class Inputs {
 public:
  struct Way {
    Isa isa;
    Rows rows;
    std::int64_t group;
    Activations activations;
    std::shared_ptr<const void> bytes;
  };

  // The tokens as a product of this instruction set, group size and format wants them.
  std::shared_ptr<const void> quantized(Isa isa, const Rows& rows, std::int64_t group, Activations activations, int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Way& way : ways_)
      if (fits(way, isa, rows.n, rows.columns, group, activations) && way.rows.x == rows.x && way.rows.stride == rows.stride) return way.bytes;
    const std::size_t size = bitbudget::inputs_size(isa, rows.n, rows.columns, group, activations);
    const std::shared_ptr<void> bytes(::operator new(size, kAligned), [](void* held) { ::operator delete(held, kAligned); });
    bitbudget::quantize_inputs(isa, rows.x, rows.n, rows.stride, rows.columns, group, activations, bytes.get(), threads);
    ways_.push_back({isa, rows, group, activations, bytes});
    return bytes;
  }

  // In how many ways the tensor has been quantized.
  std::size_t ways() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ways_.size();
  }

  // What a product multiplied with, fp32 [n, columns]; for tests.
  void dequantize(int isa_number, std::int64_t n, std::int64_t columns, std::int64_t group, int activations, std::uintptr_t x,
                  std::size_t x_bytes) {
    const Isa isa = isa_of(isa_number);
    const Activations format = activations_of(activations);
    float* values = at<float>(x, x_bytes, strided(n, columns, columns), "too few bytes of x");
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found =
        std::find_if(ways_.begin(), ways_.end(), [&](const Way& way) { return fits(way, isa, n, columns, group, format); });
    require(found != ways_.end(), "the inputs were not quantized that way");
    bitbudget::dequantize_inputs(isa, found->bytes.get(), n, columns, group, format, values);
  }

 private:
  static constexpr std::align_val_t kAligned{kAlignment};

  static bool fits(const Way& way, Isa isa, std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations) {
    return way.isa == isa && way.rows.n == n && way.rows.columns == columns && way.group == group && way.activations == activations;
  }

  std::mutex mutex_;
  std::vector<Way> ways_;
};

// All dense parts of a weight [outputs, columns], with the outliers of their rows. Addresses and sizes were checked when they were
// added; the caller keeps them alive and unchanged.
class Weight {
 public:
  Weight(int isa, std::int64_t columns, std::int64_t outputs) : isa_(isa_of(isa)), columns_(columns), outputs_(outputs) {
    require(columns > 0 && columns <= kLargest && outputs > 0 && outputs <= kLargest, "no columns, or no outputs");
  }

  // order: the output of each row. outliers: packed, of these rows.
  void add(std::int64_t rows, std::int64_t group, int bits, int parameters, std::uintptr_t packed, std::size_t packed_bytes,
           std::uintptr_t order, std::size_t order_bytes, std::uintptr_t outliers, std::size_t outliers_bytes) {
    Part part{checked(isa_, rows, columns_, group, bits, parameters), nullptr, nullptr, nullptr};
    part.packed = aligned(packed, packed_bytes, bitbudget::packed_size(isa_, part.shape), "too few packed bytes");
    part.order = order_at(order, order_bytes, rows, outputs_);
    if (outliers != 0) {
      const auto needed = [=](std::int64_t count) { return static_cast<std::size_t>(bitbudget::outliers_layout(rows, count).bytes); };
      part.outliers = aligned(outliers, outliers_bytes, needed(0), "too few bytes of outliers");
      const std::int32_t count = static_cast<const std::int32_t*>(part.outliers)[rows];
      require(count >= 0 && outliers_bytes >= needed(count), "too few bytes of outliers");
    }
    parts_.push_back(part);
  }

  // Writes the outputs of all rows, y [n, outputs]. x: n rows `stride` apart, which `inputs` are of. bias: [outputs].
  void multiply(Inputs& inputs, std::uintptr_t x, std::size_t x_bytes, std::int64_t n, std::int64_t stride, int activations,
                std::uintptr_t bias, std::size_t bias_bytes, std::uintptr_t y, std::size_t y_bytes, int threads) const {
    const Activations format = activations_of(activations);
    const Rows rows{at<float>(x, x_bytes, strided(n, stride, columns_), "too few bytes of x"), n, stride, columns_};
    const auto bias_needed = sizeof(float) * static_cast<std::size_t>(outputs_);
    const float* added = bias == 0 ? nullptr : at<float>(bias, bias_bytes, bias_needed, "too few biases");
    float* result = at<float>(y, y_bytes, strided(n, outputs_, outputs_), "too few bytes for y");
    threads_of(threads);
    if (n == 0) return;
    for (const Part& part : parts_) {
      const auto quantized = inputs.quantized(isa_, rows, part.shape.group, format, threads);
      const bitbudget::Outliers sparse{part.outliers, rows.x, stride};
      bitbudget::matmul(isa_, part.shape, part.packed, quantized.get(), n, format, added, part.order, result, outputs_, threads,
                        part.outliers ? &sparse : nullptr);
    }
  }

 private:
  struct Part {
    Shape shape;
    const void* packed;
    const std::int32_t* order;
    const void* outliers;
  };

  Isa isa_;
  std::int64_t columns_, outputs_;
  std::vector<Part> parts_;
};

}  // namespace
