// Loops unrolled by the language, so that arrays of registers are indexed by constants under every compiler and optimization level.

#pragma once

#include <utility>

#if defined(_MSC_VER) && !defined(__clang__)
#define BITBUDGET_INLINE __forceinline
#define BITBUDGET_INLINE_LAMBDA
#else
#define BITBUDGET_INLINE inline __attribute__((always_inline))
#define BITBUDGET_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace bitbudget {

template <class Body, int... kIndex>
static BITBUDGET_INLINE void unroll_over(std::integer_sequence<int, kIndex...>, Body&& body) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}

// body(0), …, body(kCount − 1), each index a compile-time constant.
template <int kCount, class Body>
static BITBUDGET_INLINE void unroll(Body&& body) {
  unroll_over(std::make_integer_sequence<int, kCount>{}, body);
}

}  // namespace bitbudget
