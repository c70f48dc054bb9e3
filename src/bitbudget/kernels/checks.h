// What the extension asks of the numbers that Python gives it, before an address is used. Whatever does not fit raises ValueError.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "cpu/kernels.h"

namespace {

using bitbudget::Activations;
using bitbudget::Isa;
using bitbudget::Parameters;
using bitbudget::Shape;

constexpr std::uintptr_t kAlignment = 64;
constexpr std::int64_t kLargest = std::int64_t{1} << 40;  // of any extent: products of two stay within 64 bits where they are checked

void require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

int threads_of(int number) {
  require(number > 0, "at least one thread");
  return number;
}

constexpr int kIsas = static_cast<int>(Isa::neon_i8mm) + 1;

// Asked once: in a virtual machine every question to the processor costs as much as a small product.
bool supported(int isa) {
  static const std::array<bool, kIsas> known = [] {
    std::array<bool, kIsas> found{};
    for (int number = 0; number < kIsas; ++number) found[static_cast<std::size_t>(number)] = bitbudget::supported(static_cast<Isa>(number));
    return found;
  }();
  return isa >= 0 && isa < kIsas && known[static_cast<std::size_t>(isa)];
}

Isa isa_of(int number) {
  require(supported(number), "this machine does not have that instruction set");
  return static_cast<Isa>(number);
}

Activations activations_of(int number) {
  require(number == 0 || number == 1, "activations are a8 (0) or a16 (1)");
  return static_cast<Activations>(number);
}

Parameters parameters_of(int number) {
  require(number >= 0 && number <= static_cast<int>(Parameters::bf16), "parameters are fp32 (0), fp16 (1) or bf16 (2)");
  return static_cast<Parameters>(number);
}

bool is_small(const Shape& shape) {
  return shape.rows > 0 && shape.columns > 0 && shape.group > 0 && shape.rows <= kLargest / shape.columns &&
         shape.columns <= kLargest;
}

Shape checked(Isa isa, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters) {
  const Shape shape{rows, columns, group, bits, parameters_of(parameters)};
  require(is_small(shape) && bitbudget::valid(isa, shape), "the kernels have no such shape, group size or width");
  return shape;
}

// An address of at least `needed` bytes.
template <typename T>
T* at(std::uintptr_t address, std::size_t given, std::size_t needed, const char* what) {
  require(given >= needed && (needed == 0 || address != 0), what);
  require(address % alignof(T) == 0, "an address is not aligned to its elements");
  return reinterpret_cast<T*>(address);
}

void* aligned(std::uintptr_t address, std::size_t given, std::size_t needed, const char* what) {
  void* found = at<unsigned char>(address, given, needed, what);
  require(address % kAlignment == 0, "packed weights and inputs have to be aligned to 64 bytes");
  return found;
}

// Bytes of n rows of floats that begin `stride` apart.
std::size_t strided(std::int64_t n, std::int64_t stride, std::int64_t columns) {
  require(n >= 0 && n <= kLargest && stride >= columns && stride <= kLargest && (n == 0 || stride <= kLargest / n),
          "rows overlap or there are too many");
  return n == 0 ? 0 : sizeof(float) * static_cast<std::size_t>((n - 1) * stride + columns);
}

// Indices of rows below `limit`, or nullptr.
const std::int32_t* order_at(std::uintptr_t address, std::size_t given, std::int64_t rows, std::int64_t limit) {
  if (address == 0) {
    require(rows <= limit, "more rows than outputs");
    return nullptr;
  }
  const std::int32_t* order = at<std::int32_t>(address, given, sizeof(std::int32_t) * static_cast<std::size_t>(rows), "too few row indices");
  std::int32_t low = 0, high = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    low = order[row] < low ? order[row] : low;
    high = order[row] > high ? order[row] : high;
  }
  require(low >= 0 && high < limit, "a row index is outside the outputs");
  return order;
}

}  // namespace
