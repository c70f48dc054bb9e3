// Times of the kernels, with weights that come from memory: copies of one matrix that fill 256 MiB are walked in turn. Every pass times all
// asked widths and a bandwidth probe alternately, so that a disturbance of the machine meets them all.
//
//   bench_kernels [rows columns [group]] [n=1,8,512] [threads=1,2] [bits=2,3,4,8] [isa=best] [passes=15] [a16] [hot] [outliers] [in_order=0|1]
//
// hot: the same matrix every time, so that one which fits the cache shows what the arithmetic alone takes. outliers: 0.5 %
// of the weights are outliers on top, added in the same call. in_order: how weights are read, in place of this processor's own way.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

using namespace bitbudget;

namespace {

constexpr std::size_t kRotated = std::size_t{256} << 20;

struct Buffer {
  explicit Buffer(std::size_t bytes)
      : data(static_cast<std::uint8_t*>(::operator new((bytes + kPage - 1) / kPage * kPage, std::align_val_t{kPage}))) {
#if defined(__linux__)
    madvise(data, (bytes + kPage - 1) / kPage * kPage, MADV_HUGEPAGE);
#endif
  }
  ~Buffer() { ::operator delete(data, std::align_val_t{kPage}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  static constexpr std::size_t kPage = 2 << 20;
  std::uint8_t* data;
};

struct Options {
  std::int64_t rows = 4096, columns = 4096, group = 128;
  std::vector<int> n{1, 8, 512}, threads{1, 2}, bits{2, 3, 4, 8};
  int isa = static_cast<int>(best()), passes = 15;
  Activations activations = Activations::a8;
  bool hot = false, outliers = false;
};

std::vector<int> numbers(const char* text) {
  std::vector<int> list;
  for (const char* at = text; at; at = std::strchr(at, ',') ? std::strchr(at, ',') + 1 : nullptr) list.push_back(std::atoi(at));
  return list;
}

Options parse(int count, char** arguments) {
  Options o;
  std::vector<std::int64_t> extents;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const auto given = [&](const char* name) { return argument.rfind(name, 0) == 0; };
    const char* value = std::strchr(arguments[i], '=') ? std::strchr(arguments[i], '=') + 1 : "";
    if (given("n=")) o.n = numbers(value);
    else if (given("threads=")) o.threads = numbers(value);
    else if (given("bits=")) o.bits = numbers(value);
    else if (given("isa=")) o.isa = std::atoi(value);
    else if (given("passes=")) o.passes = std::atoi(value);
    else if (given("in_order=")) read_in_order(std::atoi(value) != 0);
    else if (argument == "a16") o.activations = Activations::a16;
    else if (argument == "hot") o.hot = true;
    else if (argument == "outliers") o.outliers = true;
    else extents.push_back(std::atoll(arguments[i]));
  }
  if (extents.size() > 0) o.rows = extents[0];
  if (extents.size() > 1) o.columns = extents[1];
  if (extents.size() > 2) o.group = extents[2];
  return o;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of all threads: what a busy machine gave to this process. With one thread, wall-clock time without the waiting.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

struct Layer {
  Shape shape;
  std::size_t bytes;
  int copies;
  std::unique_ptr<Buffer> packed;
  int next = 0;

  Layer(Isa isa, Shape s) : shape(s), bytes(packed_size(isa, s)) {
    copies = static_cast<int>(kRotated / bytes + 1);
    packed = std::make_unique<Buffer>(bytes * static_cast<std::size_t>(copies));
    std::mt19937 rng(7);
    const auto groups = static_cast<std::size_t>((s.columns + s.group - 1) / s.group);
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(s.rows * s.columns));
    for (auto& code : codes) code = static_cast<std::uint8_t>(rng() & ((1u << s.bits) - 1));
    const std::vector<float> scale(static_cast<std::size_t>(s.rows) * groups, 0.0078125f), zero(scale.size(), 1.5f);
    pack(isa, s, codes.data(), scale.data(), zero.data(), packed->data, 2);
    for (int i = 1; i < copies; ++i) std::memcpy(packed->data + static_cast<std::size_t>(i) * bytes, packed->data, bytes);
  }
  const void* take(bool hot) {
    next = hot ? 0 : (next + 1) % copies;
    return packed->data + static_cast<std::size_t>(next) * bytes;
  }
};

// GB/s of `threads` threads that read 16 MiB, another sixteenth of the buffer every time, in the faster of both ways.
double bandwidth(const Buffer& buffer, int threads, std::size_t turn) {
  constexpr std::size_t kBytes = kRotated / 16;
  double best = 0.0;
  for (const bool side_by_side : {false, true}) {
    const auto* words = reinterpret_cast<const std::uint64_t*>(buffer.data + (2 * turn + side_by_side) % 16 * kBytes);
    const double start = seconds();
    read_all(words, kBytes / sizeof *words, threads, side_by_side);
    best = std::max(best, static_cast<double>(kBytes) / (seconds() - start) / 1e9);
  }
  return best;
}

// 0.5 % of a matrix, in copies that are walked in turn like the weights.
struct Sparse {
  std::size_t bytes, copies, next = 0;
  std::unique_ptr<Buffer> packed;

  explicit Sparse(const Options& o) {
    std::mt19937 rng(11);
    std::binomial_distribution<int> draw(static_cast<int>(o.columns), 0.005);
    std::vector<std::int32_t> start{0}, columns;
    for (std::int64_t row = 0; row < o.rows; ++row) start.push_back(start.back() + draw(rng));
    for (int i = 0; i < start.back(); ++i) columns.push_back(static_cast<std::int32_t>(rng() % static_cast<unsigned>(o.columns)));
    bytes = packed_outliers_size(o.rows, start.data());
    copies = kRotated / bytes + 1;
    packed = std::make_unique<Buffer>(bytes * copies);
    pack_outliers(o.rows, start.data(), columns.data(), std::vector<float>(columns.size(), 0.5f).data(), packed->data);
    for (std::size_t i = 1; i < copies; ++i) std::memcpy(packed->data + i * bytes, packed->data, bytes);
  }
  const void* take() {
    next = (next + 1) % copies;
    return packed->data + next * bytes;
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

void time_all(const Options& o, Isa isa, std::vector<std::unique_ptr<Layer>>& layers, Sparse* sparse, int n, int threads) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n * o.columns)), y(static_cast<std::size_t>(n * o.rows));
  for (auto& value : x) value = normal(rng);
  Buffer inputs(inputs_size(isa, n, o.columns, o.group, o.activations));
  std::vector<std::vector<double>> times(layers.size()), processor_times(layers.size());
  std::vector<double> quantizing;
  std::vector<double> rates;
  const int calls = n <= 16 ? 8 : 1, passes = n <= 16 ? o.passes : std::max(3, o.passes / 4);
  for (int pass = 0; pass < passes; ++pass) {
    for (std::size_t i = 0; i < layers.size(); ++i)
      for (int call = 0; call < calls; ++call) {
        const double start = seconds(), processor_start = processor_seconds();
        quantize_inputs(isa, x.data(), n, o.columns, o.columns, o.group, o.activations, inputs.data, threads);
        const Outliers outliers{sparse ? sparse->take() : nullptr, x.data(), o.columns};
        matmul(isa, layers[i]->shape, layers[i]->take(o.hot), inputs.data, n, o.activations, nullptr, nullptr, y.data(), o.rows, threads,
               sparse ? &outliers : nullptr);
        times[i].push_back(seconds() - start);
        processor_times[i].push_back(processor_seconds() - processor_start);
      }
    const double start = seconds();
    quantize_inputs(isa, x.data(), n, o.columns, o.columns, o.group, o.activations, inputs.data, threads);
    quantizing.push_back(seconds() - start);
    for (int call = 0; call < calls; ++call) rates.push_back(bandwidth(*layers.back()->packed, threads, rates.size()));
  }
  std::printf("n %d, %d threads: quantization of x %.1f us", n, threads, least(quantizing) * 1e6);
  std::printf("; bandwidth median %.1f, most %.1f GB/s\n", median(rates), *std::max_element(rates.begin(), rates.end()));
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const double typical = median(times[i]), shortest = least(times[i]);
    std::printf("  %d bits: median %9.1f us, least %9.1f us (%6.2f GB/s, %7.1f GOP/s), processor %9.1f us\n", layers[i]->shape.bits, typical * 1e6, shortest * 1e6,
                static_cast<double>(layers[i]->bytes) / shortest / 1e9,
                2e-9 * static_cast<double>(o.rows) * static_cast<double>(o.columns) * n / shortest,
                least(processor_times[i]) * 1e6);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const Options o = parse(count, arguments);
  const Isa isa = static_cast<Isa>(o.isa);
  std::printf("%lld x %lld, group %lld, instruction set %d, %s\n", static_cast<long long>(o.rows), static_cast<long long>(o.columns),
              static_cast<long long>(o.group), o.isa, o.activations == Activations::a8 ? "a8" : "a16");
  std::vector<std::unique_ptr<Layer>> layers;
  for (const int bits : o.bits)
    layers.push_back(std::make_unique<Layer>(isa, Shape{o.rows, o.columns, o.group, bits, Parameters::fp16}));
  const std::unique_ptr<Sparse> sparse(o.outliers ? new Sparse(o) : nullptr);
  for (const int n : o.n)
    for (const int threads : o.threads) time_all(o, isa, layers, sparse.get(), n, threads);
  return 0;
}
