// AArch64: a line of a tile is four registers of 4 rows. isa_neon_dotprod.cpp and isa_neon_i8mm.cpp give the multiply-add.

#pragma once

#include <arm_neon.h>

#include "multiply.h"

namespace bitbudget {
namespace {

template <class Register>
struct Four {
  Register part[4];
};

struct NeonBase {
  static constexpr int kTiles = 1, kStreams = 6, kTogether = 0, kClassSums = 4, kWalk = 4, kTries = 1;

  using Codes = Four<uint8x16_t>;
  using Values = int8x16_t;
  using Sums = Four<int32x4_t>;
  using Floats = Four<float32x4_t>;

  template <class Result, class Make>
  static BITBUDGET_INLINE Result each(Make&& make) {
    return {make(0), make(1), make(2), make(3)};
  }

  static void fetch(const void* at) { __builtin_prefetch(at); }
  static void fetch_outer(const void* at) { __builtin_prefetch(at, 0, 2); }
  static BITBUDGET_INLINE Codes load(const std::uint8_t* at) {
    return each<Codes>([&](int i) BITBUDGET_INLINE_LAMBDA { return vld1q_u8(at + 16 * i); });
  }
  static BITBUDGET_INLINE void store(std::uint8_t* at, const Codes& codes) {
    for (int i = 0; i < 4; ++i) vst1q_u8(at + 16 * i, codes.part[i]);
  }
  template <int kMask>
  static BITBUDGET_INLINE Codes mask(const Codes& codes) {
    return each<Codes>([&](int i) BITBUDGET_INLINE_LAMBDA { return vandq_u8(codes.part[i], vdupq_n_u8(kMask)); });
  }
  template <int kShift>
  static BITBUDGET_INLINE Codes right(const Codes& codes) {
    return each<Codes>([&](int i) BITBUDGET_INLINE_LAMBDA { return vshrq_n_u8(codes.part[i], kShift); });
  }
  template <int kMask>
  static BITBUDGET_INLINE Codes select(const Codes& a, const Codes& b) {
    return each<Codes>([&](int i) BITBUDGET_INLINE_LAMBDA { return vbslq_u8(vdupq_n_u8(kMask), a.part[i], b.part[i]); });
  }

  static BITBUDGET_INLINE Values broadcast(const std::int8_t* at) {
    std::int32_t quad;
    std::memcpy(&quad, at, sizeof quad);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
  }
  static BITBUDGET_INLINE Sums zero_sums() {
    return each<Sums>([&](int) BITBUDGET_INLINE_LAMBDA { return vdupq_n_s32(0); });
  }
  static BITBUDGET_INLINE Sums plus(const Sums& a, const Sums& b) {
    return each<Sums>([&](int i) BITBUDGET_INLINE_LAMBDA { return vaddq_s32(a.part[i], b.part[i]); });
  }
  template <int kShift>
  static BITBUDGET_INLINE Sums right_sums(const Sums& a) {
    return each<Sums>([&](int i) BITBUDGET_INLINE_LAMBDA { return vshrq_n_s32(a.part[i], kShift); });
  }

  static BITBUDGET_INLINE Floats floats(const Sums& sums) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vcvtq_f32_s32(sums.part[i]); });
  }
  static BITBUDGET_INLINE Floats splat(float value) {
    return each<Floats>([&](int) BITBUDGET_INLINE_LAMBDA { return vdupq_n_f32(value); });
  }
  static BITBUDGET_INLINE Floats times(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vmulq_f32(a.part[i], b.part[i]); });
  }
  static BITBUDGET_INLINE Floats add_product(const Floats& sum, const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vfmaq_f32(sum.part[i], a.part[i], b.part[i]); });
  }
  static BITBUDGET_INLINE Floats minus_product(const Floats& sum, const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vfmsq_f32(sum.part[i], a.part[i], b.part[i]); });
  }
  static BITBUDGET_INLINE Floats load_fp32(const void* at) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vld1q_f32(static_cast<const float*>(at) + 4 * i); });
  }
  static BITBUDGET_INLINE uint16x4_t load_halves(const void* at, int index) {
    return vld1_u16(static_cast<const std::uint16_t*>(at) + 4 * index);
  }
  static BITBUDGET_INLINE Floats load_fp16(const void* at) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(at, i))); });
  }
  static BITBUDGET_INLINE Floats load_bf16(const void* at) {
    return each<Floats>([&](int i) BITBUDGET_INLINE_LAMBDA { return vreinterpretq_f32_u32(vshll_n_u16(load_halves(at, i), 16)); });
  }
  static BITBUDGET_INLINE void store_fp32(void* at, const Floats& a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(static_cast<float*>(at) + 4 * i, a.part[i]);
  }
};

}  // namespace
}  // namespace bitbudget
