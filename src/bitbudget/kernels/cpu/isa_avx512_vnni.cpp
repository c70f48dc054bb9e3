// AVX-512 with VNNI.

#include "avx512.h"

namespace bitbudget {
namespace {

constexpr Kernels kKernels = kernels_of<Avx512Vnni>();

}  // namespace

const Kernels* avx512_vnni_kernels() { return &kKernels; }

}  // namespace bitbudget
