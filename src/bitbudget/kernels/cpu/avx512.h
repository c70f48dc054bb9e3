// AVX-512 with VNNI: one register is a line of a tile, one vpdpbusd its product with four broadcast values.

#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers: gcc.gnu.org/PR105593
#endif

#include <immintrin.h>

#include "multiply.h"

namespace bitbudget {
namespace {

// The element type that vpdpbusd has: with __m512i, whose elements are 64 bits, GCC holds every sum twice, once in memory.
#if defined(__GNUC__)
using Sums16 = std::int32_t __attribute__((vector_size(64)));
#else
using Sums16 = __m512i;
#endif

struct Avx512Vnni {
  static constexpr int kTiles = 3, kStreams = 8, kTogether = 2, kClassSums = 16, kWalk = 4, kTries = 2;
  static constexpr bool kWholeBytes = true;

  using Codes = __m512i;
  using Values = __m512i;
  using Sums = Sums16;
  using Floats = __m512;

  static BITBUDGET_INLINE Codes load(const std::uint8_t* at) { return _mm512_load_si512(at); }
  static BITBUDGET_INLINE void fetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
  static BITBUDGET_INLINE void fetch_outer(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
  static BITBUDGET_INLINE void store(std::uint8_t* at, Codes codes) { _mm512_store_si512(at, codes); }
  static BITBUDGET_INLINE __m512i splat_byte(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
  template <int kMask>
  static BITBUDGET_INLINE Codes mask(Codes codes) {
    return _mm512_and_si512(codes, splat_byte(kMask));
  }
  // Within 16 bits: bits that cross into the lower byte land above what the masks keep.
  template <int kShift>
  static BITBUDGET_INLINE Codes right(Codes codes) {
    return _mm512_srli_epi16(codes, kShift);
  }
  template <int kMask>
  static BITBUDGET_INLINE Codes select(Codes a, Codes b) {
    return _mm512_ternarylogic_epi32(splat_byte(kMask), a, b, 0xCA);
  }

  static BITBUDGET_INLINE Values broadcast(const std::int8_t* at) {
    int quad;
    std::memcpy(&quad, at, sizeof quad);
    return _mm512_set1_epi32(quad);
  }
  static BITBUDGET_INLINE Sums zero_sums() { return (Sums)_mm512_setzero_si512(); }
  template <int kLargest>
  static BITBUDGET_INLINE Sums dot(Sums sums, Codes codes, Values values) {
    return (Sums)_mm512_dpbusd_epi32((__m512i)sums, codes, values);
  }
  static BITBUDGET_INLINE Sums plus(Sums a, Sums b) { return (Sums)_mm512_add_epi32((__m512i)a, (__m512i)b); }
  template <int kShift>
  static BITBUDGET_INLINE Sums right_sums(Sums a) {
    return (Sums)_mm512_srai_epi32((__m512i)a, kShift);
  }

  static BITBUDGET_INLINE Floats floats(Sums sums) { return _mm512_cvtepi32_ps((__m512i)sums); }
  static BITBUDGET_INLINE Floats splat(float value) { return _mm512_set1_ps(value); }
  static BITBUDGET_INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static BITBUDGET_INLINE Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
  static BITBUDGET_INLINE Floats minus_product(Floats sum, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, sum); }
  static BITBUDGET_INLINE Floats load_fp32(const void* at) { return _mm512_load_ps(at); }
  static BITBUDGET_INLINE __m256i load_halves(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
  static BITBUDGET_INLINE Floats load_fp16(const void* at) { return _mm512_cvtph_ps(load_halves(at)); }
  static BITBUDGET_INLINE Floats load_bf16(const void* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(at)), 16));
  }
  static BITBUDGET_INLINE void store_fp32(void* at, Floats a) { _mm512_store_ps(at, a); }
};

}  // namespace
}  // namespace bitbudget
