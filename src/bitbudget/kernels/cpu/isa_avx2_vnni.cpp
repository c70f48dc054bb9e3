// AVX2 with AVX-VNNI: vpdpbusd on 256 bits.

#include "avx2.h"

namespace bitbudget {
namespace {

struct Avx2Vnni : Avx2Base {
  static constexpr int kClassSums = 4;
  static constexpr bool kWholeBytes = true;

  template <int kLargest>
  static BITBUDGET_INLINE Sums dot(const Sums& sums, const Codes& codes, Values values) {
    return {(Sums8)_mm256_dpbusd_avx_epi32((__m256i)sums.low, codes.low, values),
            (Sums8)_mm256_dpbusd_avx_epi32((__m256i)sums.high, codes.high, values)};
  }
};

constexpr Kernels kKernels = kernels_of<Avx2Vnni>();

}  // namespace

const Kernels* avx2_vnni_kernels() { return &kKernels; }

}  // namespace bitbudget
