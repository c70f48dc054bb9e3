#include "processor.h"

#if defined(BITBUDGET_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace bitbudget {

#if defined(BITBUDGET_X86)

namespace {

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{};
#if defined(_MSC_VER)
  int values[4];
  __cpuid(values, 0);
  if (leaf > static_cast<unsigned>(values[0])) return r;
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<unsigned>(values[0]), static_cast<unsigned>(values[1]), static_cast<unsigned>(values[2]),
       static_cast<unsigned>(values[3])};
#else
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) r = {};
#endif
  return r;
}

// The register states that the operating system saves (XCR0).
unsigned long long saved_states() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
#endif
}

bool all(unsigned value, unsigned bits) { return (value & bits) == bits; }

}  // namespace

bool processor_has(Isa isa) {
  if (isa == Isa::portable) return true;
  constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;             // 1: ecx
  constexpr unsigned kAvx2 = 1u << 5, kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;      // 7.0: ebx
  constexpr unsigned kAvx512Vnni = 1u << 11, kAvxVnni = 1u << 4;                                          // 7.0: ecx; 7.1: eax
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  if (!all(one.ecx, kFma | kOsxsave | kAvx | kF16c) || !all(seven.ebx, kAvx2) || !all(static_cast<unsigned>(saved_states()), 0x06))
    return false;
  if (isa == Isa::avx2) return true;
  if (isa == Isa::avx2_vnni) return seven.eax >= 1 && all(cpuid(7, 1).eax, kAvxVnni);
  return isa == Isa::avx512_vnni && all(seven.ebx, kF | kDq | kBw | kVl) && all(seven.ecx, kAvx512Vnni) &&
         all(static_cast<unsigned>(saved_states()), 0xe6);
}

#else

bool processor_has(Isa isa) { return isa == Isa::portable; }

#endif

}  // namespace bitbudget
