#include "processor.h"

#if defined(BITBUDGET_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(BITBUDGET_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(BITBUDGET_ARM)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
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

bool processor_reads_in_order() {
  const Registers zero = cpuid(0, 0);
  return zero.ebx == 0x68747541 && zero.edx == 0x69746e65 && zero.ecx == 0x444d4163;  // "AuthenticAMD"
}

#if defined(BITBUDGET_AMX)

bool processor_has_tiles() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // 7.0: edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  return processor_has(Isa::avx512_vnni) && all(cpuid(7, 0).edx, kTile | kInt8) &&
         all(static_cast<unsigned>(saved_states()), 3u << 17) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#endif

#elif defined(BITBUDGET_ARM) && defined(__APPLE__)

bool processor_has(Isa isa) {
  const char* name = isa == Isa::neon_dotprod ? "hw.optional.arm.FEAT_DotProd" : isa == Isa::neon_i8mm ? "hw.optional.arm.FEAT_I8MM" : "";
  int value = 0;
  std::size_t size = sizeof value;
  return isa == Isa::portable || (*name && sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value == 1);
}

#elif defined(BITBUDGET_ARM)

bool processor_has(Isa isa) {
  constexpr unsigned long kDotprod = 1ul << 20, kI8mm = 1ul << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  if (isa == Isa::neon_dotprod) return getauxval(AT_HWCAP) & kDotprod;
  if (isa == Isa::neon_i8mm) return (getauxval(AT_HWCAP) & kDotprod) && (getauxval(AT_HWCAP2) & kI8mm);
  return isa == Isa::portable;
}

#else

bool processor_has(Isa isa) { return isa == Isa::portable; }

#endif

#if !defined(BITBUDGET_AMX)
bool processor_has_tiles() { return false; }
#endif

#if !defined(BITBUDGET_X86)
bool processor_reads_in_order() { return false; }
#endif

}  // namespace bitbudget
