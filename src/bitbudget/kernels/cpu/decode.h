// Lines of packed codes to bytes that the multiply-add instructions take. `V` is an instruction set (isa_*.cpp).

#pragma once

#include "layout.h"
#include "unroll.h"

namespace bitbudget {

// Codes need not be moved to the bottom of their bytes: a code masked where it lies is the code times 2^shift. Sums of codes with the
// same shift share an accumulator, a class, which is divided by 2^shift once per cell, exactly.
static constexpr int classes(int bits) { return bits == 8 ? 1 : bits == 2 || bits == 3 ? 4 : 2; }

static constexpr int class_of(int bits, int quad) {
  switch (bits) {
    case 2:
      return quad % 4;
    case 3:
      return quad < 6 ? quad % 2 : quad - 4;
    case 4:
      return quad % 2;
    case 5:
      return quad < 5 ? 0 : 1;
    case 6:
      return quad % 4 < 3 ? 0 : 1;
    default:
      return 0;
  }
}

static constexpr int shift_of_class(int bits, int index) {
  constexpr int three[4] = {0, 3, 5, 4};
  switch (bits) {
    case 2:
      return 2 * index;
    case 3:
      return three[index];
    case 4:
      return 4 * index;
    case 5:
      return 3 * index;
    case 6:
      return 2 * index;
    default:
      return 0;
  }
}

// Codes of quad kQuad from the lines of its block, times 2^shift of its class. The masks follow from `pieces`.
template <class V, int kBits, int kQuad>
static BITBUDGET_INLINE typename V::Codes code_in_place(const typename V::Codes* line) {
  if constexpr (kBits == 2) {
    return V::template mask<0x03 << 2 * (kQuad % 4)>(line[kQuad / 4]);
  } else if constexpr (kBits == 3 && kQuad < 6) {
    return V::template mask<0x07 << 3 * (kQuad % 2)>(line[kQuad / 2]);
  } else if constexpr (kBits == 3 && kQuad == 6) {
    return V::template mask<0xE0>(V::template select<0x60>(V::template right<1>(line[0]), line[2]));
  } else if constexpr (kBits == 3) {
    return V::template mask<0x70>(V::template select<0x30>(V::template right<2>(line[1]), line[2]));
  } else if constexpr (kBits == 4) {
    return V::template mask<0x0F << 4 * (kQuad % 2)>(line[kQuad / 2]);
  } else if constexpr (kBits == 5 && kQuad < 5) {
    return V::template mask<0x1F>(line[kQuad]);
  } else if constexpr (kBits == 5 && kQuad < 7) {
    return V::template mask<0xF8>(V::template select<0xE0>(line[kQuad - 5], V::template right<3>(line[kQuad - 2])));
  } else if constexpr (kBits == 5) {
    return V::template mask<0xF8>(V::template select<0xE0>(
        line[2], V::template select<0x10>(V::template right<1>(line[3]), V::template right<2>(line[4]))));
  } else if constexpr (kBits == 6 && kQuad % 4 < 3) {
    return V::template mask<0x3F>(line[3 * (kQuad / 4) + kQuad % 4]);
  } else if constexpr (kBits == 6) {
    const auto* half = line + 3 * (kQuad / 4);
    return V::template mask<0xFC>(V::template select<0xC0>(
        half[0], V::template select<0x30>(V::template right<2>(half[1]), V::template right<4>(half[2]))));
  } else {
    return line[kQuad];
  }
}

// The codes themselves.
template <class V, int kBits, int kQuad>
static BITBUDGET_INLINE typename V::Codes code(const typename V::Codes* line) {
  constexpr int kShift = shift_of_class(kBits, class_of(kBits, kQuad));
  const auto codes = code_in_place<V, kBits, kQuad>(line);
  if constexpr (kShift == 0)
    return codes;
  else
    return V::template right<kShift>(codes);
}

}  // namespace bitbudget
