// Compile with -O3: without unrolling, the sums go through memory and half of the rate is found.
//
// How many int8 multiply-adds a second the processor makes when nothing else is in the way: vpdpbusd over 16 accumulators, and tdpbssd
// over 4 tiles, where there are tiles. Prints both as GOP/s (a multiply-add is two) for the number of threads given; 0 without tiles.

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// 16 rows × 64 bytes in every tile register.
struct alignas(64) Shapes {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool has_tiles() {
  unsigned eax, ebx, ecx, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 24 & 1) || !(edx >> 25 & 1)) return false;
  return syscall(SYS_arch_prctl, 0x1023 /*ARCH_REQ_XCOMP_PERM*/, 18 /*XTILEDATA*/) == 0;
}

double giga_operations_of_tiles(double seconds) {
  static const Shapes shapes;  // GCC 12 says that the instruction reads 8 bytes of it
  _tile_loadconfig(&shapes);
  _tile_zero(4);
  _tile_zero(5);
  long rounds = 0;
  const auto began = std::chrono::steady_clock::now();
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 10000; ++i) {
      _tile_dpbssd(0, 4, 5);
      _tile_dpbssd(1, 4, 5);
      _tile_dpbssd(2, 4, 5);
      _tile_dpbssd(3, 4, 5);
    }
    rounds += 10000;
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  _tile_release();
  return rounds * 4.0 * 16 * 16 * 64 * 2 / elapsed / 1e9;
}

double giga_operations(double seconds) {
  __m512i sums[16], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  long rounds = 0;
  const auto began = std::chrono::steady_clock::now();
  double elapsed = 0;
  while (elapsed < seconds) {
    for (int i = 0; i < 10000; ++i)
      for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
    rounds += 10000;
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  int seen = 0;
  for (auto& sum : sums) seen += _mm512_reduce_add_epi32(sum);
  volatile int kept = seen;
  (void)kept;
  return rounds * 16.0 * 64 * 2 / elapsed / 1e9;
}

// The best of five attempts of all threads together.
double best_of(int threads, double (*measure)(double)) {
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    std::vector<std::thread> team;
    std::vector<double> found(static_cast<std::size_t>(threads));
    for (int i = 0; i < threads; ++i) team.emplace_back([&found, i, measure] { found[static_cast<std::size_t>(i)] = measure(0.1); });
    double sum = 0;
    for (int i = 0; i < threads; ++i) {
      team[static_cast<std::size_t>(i)].join();
      sum += found[static_cast<std::size_t>(i)];
    }
    best = sum > best ? sum : best;
  }
  return best;
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 1;
  const double vectors = best_of(threads, giga_operations);
  std::printf("%.1f %.1f\n", vectors, has_tiles() ? best_of(threads, giga_operations_of_tiles) : 0.0);
}
