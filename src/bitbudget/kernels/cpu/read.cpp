// Reading memory and nothing else: what a product that waits for its weights is compared with.

#include "kernels.h"
#include "layout.h"

namespace bitbudget {
namespace {

// Of `count` words, in 16 pieces of `kStreams` parts for every thread.
template <std::int64_t kStreams>
std::uint64_t read_streams(const std::uint64_t* words, std::int64_t count, int threads) {
  constexpr std::int64_t kLine = kLineBytes / 8;
  const std::int64_t chunks = kStreams * threads * 16, length = count / chunks / kLine * kLine;
  std::uint64_t seen = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : seen)
  for (std::int64_t first = 0; first < chunks; first += kStreams) {
    const std::uint64_t* from = words + first * length;
    std::uint64_t lines[kStreams][kLine] = {};
    for (std::int64_t word = 0; word < length; word += kLine)
      for (std::int64_t stream = 0; stream < kStreams; ++stream)
        for (std::int64_t i = 0; i < kLine; ++i) lines[stream][i] |= from[stream * length + word + i];
    for (const auto& line : lines)
      for (const std::uint64_t word : line) seen |= word;
  }
  for (std::int64_t word = chunks * length; word < count; ++word) seen |= words[word];
  return seen;
}

}  // namespace

std::uint64_t read_all(const std::uint64_t* words, std::size_t count, int threads, bool side_by_side) {
  const auto signed_count = static_cast<std::int64_t>(count);
  return side_by_side ? read_streams<8>(words, signed_count, threads) : read_streams<1>(words, signed_count, threads);
}

}  // namespace bitbudget
