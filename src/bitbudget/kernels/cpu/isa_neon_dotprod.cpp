// AArch64 with dot products (Armv8.2 dotprod): sdot takes signed bytes. Codes up to 127 are their own; an 8-bit code is its signed byte
// plus 256 times its top bit.

#include "neon.h"

namespace bitbudget {
namespace {

struct NeonDotprod : NeonBase {
  static constexpr bool kWholeBytes = false;

  template <int kLargest>
  static BITBUDGET_INLINE Sums dot(const Sums& sums, const Codes& codes, Values values) {
    return each<Sums>([&](int i) BITBUDGET_INLINE_LAMBDA {
      const int32x4_t sum = vdotq_s32(sums.part[i], vreinterpretq_s8_u8(codes.part[i]), values);
      if constexpr (kLargest < 128) {
        return sum;
      } else {
        const int8x16_t top = vreinterpretq_s8_u8(vshrq_n_u8(codes.part[i], 7));
        return vaddq_s32(sum, vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), top, values), 8));
      }
    });
  }
};

constexpr Kernels kKernels = kernels_of<NeonDotprod>();

}  // namespace

const Kernels* neon_dotprod_kernels() { return &kKernels; }

}  // namespace bitbudget
