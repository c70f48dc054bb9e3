// 256-bit x86: a line of a tile is two registers of 8 rows. isa_avx2.cpp and isa_avx2_vnni.cpp give the multiply-add.

#pragma once

#include <immintrin.h>

#include "multiply.h"

namespace bitbudget {
namespace {

struct Pair {
  __m256i low, high;
};
// Sums have the elements that the multiply-add has: with __m256i, whose elements are 64 bits, GCC holds every sum twice.
#if defined(__GNUC__)
using Sums8 = std::int32_t __attribute__((vector_size(32)));
#else
using Sums8 = __m256i;
#endif
struct SumsPair {
  Sums8 low, high;
};
struct FloatPair {
  __m256 low, high;
};

struct Avx2Base {
  static constexpr int kTiles = 1, kStreams = 4, kTogether = 0, kWalk = 4, kTries = 1;

  using Codes = Pair;
  using Values = __m256i;
  using Sums = SumsPair;
  using Floats = FloatPair;

  static BITBUDGET_INLINE __m256i load_half(const void* at) { return _mm256_load_si256(static_cast<const __m256i*>(at)); }
  static BITBUDGET_INLINE Codes load(const std::uint8_t* at) { return {load_half(at), load_half(at + 32)}; }
  static BITBUDGET_INLINE void fetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
  static BITBUDGET_INLINE void fetch_outer(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  static BITBUDGET_INLINE void store(std::uint8_t* at, const Codes& codes) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), codes.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(at + 32), codes.high);
  }
  template <int kMask>
  static BITBUDGET_INLINE Codes mask(const Codes& codes) {
    const __m256i keep = _mm256_set1_epi8(static_cast<char>(kMask));
    return {_mm256_and_si256(codes.low, keep), _mm256_and_si256(codes.high, keep)};
  }
  // Within 16 bits: bits that cross into the lower byte land above what the masks keep.
  template <int kShift>
  static BITBUDGET_INLINE Codes right(const Codes& codes) {
    return {_mm256_srli_epi16(codes.low, kShift), _mm256_srli_epi16(codes.high, kShift)};
  }
  template <int kMask>
  static BITBUDGET_INLINE Codes select(const Codes& a, const Codes& b) {
    const __m256i from_a = _mm256_set1_epi8(static_cast<char>(kMask));
    const auto choose = [&](__m256i x, __m256i y) BITBUDGET_INLINE_LAMBDA {
      return _mm256_or_si256(_mm256_and_si256(from_a, x), _mm256_andnot_si256(from_a, y));
    };
    return {choose(a.low, b.low), choose(a.high, b.high)};
  }

  static BITBUDGET_INLINE Values broadcast(const std::int8_t* at) {
    int quad;
    std::memcpy(&quad, at, sizeof quad);
    return _mm256_set1_epi32(quad);
  }
  static BITBUDGET_INLINE Sums zero_sums() { return {(Sums8)_mm256_setzero_si256(), (Sums8)_mm256_setzero_si256()}; }
  static BITBUDGET_INLINE Sums plus(const Sums& a, const Sums& b) {
    return {(Sums8)_mm256_add_epi32((__m256i)a.low, (__m256i)b.low), (Sums8)_mm256_add_epi32((__m256i)a.high, (__m256i)b.high)};
  }
  template <int kShift>
  static BITBUDGET_INLINE Sums right_sums(const Sums& a) {
    return {(Sums8)_mm256_srai_epi32((__m256i)a.low, kShift), (Sums8)_mm256_srai_epi32((__m256i)a.high, kShift)};
  }

  static BITBUDGET_INLINE Floats floats(const Sums& sums) { return {_mm256_cvtepi32_ps((__m256i)sums.low), _mm256_cvtepi32_ps((__m256i)sums.high)}; }
  static BITBUDGET_INLINE Floats splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static BITBUDGET_INLINE Floats times(const Floats& a, const Floats& b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static BITBUDGET_INLINE Floats add_product(const Floats& sum, const Floats& a, const Floats& b) {
    return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
  }
  static BITBUDGET_INLINE Floats minus_product(const Floats& sum, const Floats& a, const Floats& b) {
    return {_mm256_fnmadd_ps(a.low, b.low, sum.low), _mm256_fnmadd_ps(a.high, b.high, sum.high)};
  }
  static BITBUDGET_INLINE Floats load_fp32(const void* at) {
    const auto* value = static_cast<const float*>(at);
    return {_mm256_load_ps(value), _mm256_load_ps(value + 8)};
  }
  static BITBUDGET_INLINE __m128i load_halves(const void* at, int index) {
    return _mm_loadu_si128(static_cast<const __m128i*>(at) + index);
  }
  static BITBUDGET_INLINE Floats load_fp16(const void* at) {
    return {_mm256_cvtph_ps(load_halves(at, 0)), _mm256_cvtph_ps(load_halves(at, 1))};
  }
  static BITBUDGET_INLINE __m256 widen(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static BITBUDGET_INLINE Floats load_bf16(const void* at) { return {widen(load_halves(at, 0)), widen(load_halves(at, 1))}; }
  static BITBUDGET_INLINE void store_fp32(void* at, const Floats& a) {
    auto* value = static_cast<float*>(at);
    _mm256_store_ps(value, a.low);
    _mm256_store_ps(value + 8, a.high);
  }
};

}  // namespace
}  // namespace bitbudget
