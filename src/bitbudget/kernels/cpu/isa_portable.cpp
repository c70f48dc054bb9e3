// Plain C++: every machine, and the specification of what the other instruction sets compute.

#include "multiply.h"

namespace bitbudget {
namespace {

struct Portable {
  static constexpr int kTiles = 1, kStreams = 4, kTogether = 0, kClassSums = 4, kWalk = 1, kTries = 1;
  static constexpr bool kWholeBytes = true;

  struct Codes {
    std::uint8_t byte[kLineBytes];
  };
  struct Values {
    std::int8_t value[4];
  };
  struct Sums {
    std::int32_t row[kTileRows];
  };
  struct Floats {
    float row[kTileRows];
  };

  static void fetch(const void*) {}
  static void fetch_outer(const void*) {}

  template <class Result, class Make>
  static Result each(Make&& make) {
    Result result;
    for (int row = 0; row < kTileRows; ++row) result.row[row] = make(row);
    return result;
  }
  template <class Make>
  static Codes each_byte(Make&& make) {
    Codes result;
    for (int i = 0; i < kLineBytes; ++i) result.byte[i] = static_cast<std::uint8_t>(make(i));
    return result;
  }

  static Codes load(const std::uint8_t* at) {
    return each_byte([&](int i) { return at[i]; });
  }
  static void store(std::uint8_t* at, const Codes& codes) { std::memcpy(at, codes.byte, kLineBytes); }
  template <int kMask>
  static Codes mask(const Codes& codes) {
    return each_byte([&](int i) { return codes.byte[i] & kMask; });
  }
  template <int kShift>
  static Codes right(const Codes& codes) {
    return each_byte([&](int i) { return codes.byte[i] >> kShift; });
  }
  template <int kMask>
  static Codes select(const Codes& a, const Codes& b) {
    return each_byte([&](int i) { return (a.byte[i] & kMask) | (b.byte[i] & ~kMask); });
  }

  static Values broadcast(const std::int8_t* at) {
    Values values;
    std::memcpy(values.value, at, sizeof values.value);
    return values;
  }
  static Sums zero_sums() { return Sums{}; }
  template <int kLargest>
  static Sums dot(Sums sums, const Codes& codes, const Values& values) {
    for (int row = 0; row < kTileRows; ++row)
      for (int i = 0; i < 4; ++i) sums.row[row] += codes.byte[4 * row + i] * values.value[i];
    return sums;
  }
  static Sums plus(const Sums& a, const Sums& b) {
    return each<Sums>([&](int row) { return a.row[row] + b.row[row]; });
  }
  template <int kShift>
  static Sums right_sums(const Sums& a) {
    return each<Sums>([&](int row) { return a.row[row] / (1 << kShift); });  // exact
  }

  static Floats floats(const Sums& sums) {
    return each<Floats>([&](int row) { return static_cast<float>(sums.row[row]); });
  }
  static Floats splat(float value) {
    return each<Floats>([&](int) { return value; });
  }
  static Floats times(const Floats& a, const Floats& b) {
    return each<Floats>([&](int row) { return a.row[row] * b.row[row]; });
  }
  static Floats add_product(const Floats& sum, const Floats& a, const Floats& b) {
    return each<Floats>([&](int row) { return sum.row[row] + a.row[row] * b.row[row]; });
  }
  static Floats minus_product(const Floats& sum, const Floats& a, const Floats& b) {
    return each<Floats>([&](int row) { return sum.row[row] - a.row[row] * b.row[row]; });
  }
  static Floats load_fp32(const void* at) {
    Floats result;
    std::memcpy(result.row, at, sizeof result.row);
    return result;
  }
  static Floats load_fp16(const void* at) {
    std::uint16_t half[kTileRows];
    std::memcpy(half, at, sizeof half);
    return each<Floats>([&](int row) { return from_fp16(half[row]); });
  }
  static Floats load_bf16(const void* at) {
    std::uint16_t half[kTileRows];
    std::memcpy(half, at, sizeof half);
    return each<Floats>([&](int row) { return from_bf16(half[row]); });
  }
  static void store_fp32(void* at, const Floats& a) { std::memcpy(at, a.row, sizeof a.row); }
};

constexpr Kernels kKernels = kernels_of<Portable>();

}  // namespace

const Kernels* portable_kernels() { return &kKernels; }

}  // namespace bitbudget
