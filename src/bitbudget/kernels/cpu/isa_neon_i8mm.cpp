// AArch64 with 8-bit matrix products (Armv8.6 i8mm): usdot takes unsigned codes against signed values.

#include "neon.h"

namespace bitbudget {
namespace {

struct NeonI8mm : NeonBase {
  static constexpr bool kWholeBytes = true;

  template <int kLargest>
  static BITBUDGET_INLINE Sums dot(const Sums& sums, const Codes& codes, Values values) {
    return each<Sums>([&](int i) BITBUDGET_INLINE_LAMBDA { return vusdotq_s32(sums.part[i], codes.part[i], values); });
  }
};

constexpr Kernels kKernels = kernels_of<NeonI8mm>();

}  // namespace

const Kernels* neon_i8mm_kernels() { return &kKernels; }

}  // namespace bitbudget
