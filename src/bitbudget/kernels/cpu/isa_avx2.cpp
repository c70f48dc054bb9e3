// AVX2: vpmaddubsw adds two products in saturating 16 bits, which codes up to 127 never reach. An 8-bit code is its low 7 bits plus 128
// times its top bit, each exact.

#include "avx2.h"

namespace bitbudget {
namespace {

struct Avx2 : Avx2Base {
  static constexpr int kClassSums = 1;
  static constexpr bool kWholeBytes = false;

  static BITBUDGET_INLINE __m256i dot_half(__m256i codes, __m256i values) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, values), _mm256_set1_epi16(1));
  }
  template <int kLargest>
  static BITBUDGET_INLINE Sums8 dot_register(Sums8 sums, __m256i codes, __m256i values) {
    if constexpr (kLargest < 128) {
      return (Sums8)_mm256_add_epi32((__m256i)sums, dot_half(codes, values));
    } else {
      const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(0x7f));
      const __m256i top = _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1));
      // The second factor of vpmaddwd is 128: top bits weigh that much.
      const __m256i tops = _mm256_madd_epi16(_mm256_maddubs_epi16(top, values), _mm256_set1_epi16(128));
      return (Sums8)_mm256_add_epi32((__m256i)sums, _mm256_add_epi32(dot_half(low, values), tops));
    }
  }
  template <int kLargest>
  static BITBUDGET_INLINE Sums dot(const Sums& sums, const Codes& codes, Values values) {
    return {dot_register<kLargest>(sums.low, codes.low, values), dot_register<kLargest>(sums.high, codes.high, values)};
  }
};

constexpr Kernels kKernels = kernels_of<Avx2>();

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace bitbudget
