// Tests of the CPU kernels without Python: every instruction set of this machine against a 64-bit integer reference. Prints what fails;
// the exit status is 0 where nothing did. Built by CMakeLists.txt beside it, with and without sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

using namespace bitbudget;

namespace {

int failures = 0, checks = 0;

void check(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

// 64-byte aligned, exactly as long as asked for, so that a sanitizer sees what lies beyond.
struct Buffer {
  explicit Buffer(std::size_t bytes) : data(::operator new(bytes, std::align_val_t{64})) {}
  ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data;
};

enum class Fill { random, extreme };

struct Weights {
  Shape shape;
  std::int64_t groups;
  std::vector<std::uint8_t> codes;
  std::vector<float> scale, zero;
};

std::int64_t groups_of(std::int64_t columns, std::int64_t group) { return (columns + group - 1) / group; }

Weights make_weights(Shape shape, Fill fill, bool plain, std::mt19937& rng) {
  Weights w{shape, groups_of(shape.columns, shape.group), {}, {}, {}};
  const int largest = (1 << shape.bits) - 1;
  w.codes.resize(static_cast<std::size_t>(shape.rows * shape.columns));
  for (auto& code : w.codes) code = static_cast<std::uint8_t>(fill == Fill::extreme ? largest : static_cast<int>(rng() % (largest + 1u)));
  w.scale.assign(static_cast<std::size_t>(shape.rows * w.groups), 1.0f);
  w.zero.assign(w.scale.size(), 0.0f);
  if (!plain) {
    for (auto& scale : w.scale) scale = static_cast<float>(rng() % 1000 + 24) / 4096.0f;  // exact in fp16; bf16 rounds some
    for (auto& zero : w.zero) zero = static_cast<float>(rng() % (8u * static_cast<unsigned>(largest) + 1)) / 8.0f;
    if (shape.parameters == Parameters::bf16)
      for (auto& scale : w.scale) scale = static_cast<float>(rng() % 255 + 1) / 8192.0f;
    if (shape.parameters == Parameters::fp32)
      for (auto& scale : w.scale) scale *= 1.0f + 1e-6f * static_cast<float>(rng() % 100);
  }
  return w;
}

// Activations that are exactly integers of at most 127, with a 127 in every group, so that their scale is exactly 1.
std::vector<float> integers(std::int64_t n, std::int64_t columns, std::int64_t group, Fill fill, std::mt19937& rng) {
  std::vector<float> x(static_cast<std::size_t>(n * columns));
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t c = 0; c < columns; ++c) {
      float value = static_cast<float>(static_cast<int>(rng() % 255) - 127);
      if (fill == Fill::extreme) value = t % 2 ? -127.0f : 127.0f;
      x[static_cast<std::size_t>(t * columns + c)] = c % group == 0 ? std::copysign(127.0f, value) : value;
    }
  return x;
}

std::vector<float> gaussians(std::int64_t count, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (auto& value : x) value = normal(rng);
  return x;
}

struct Case {
  Isa isa;
  Shape shape;
  std::int64_t n;
  Activations activations;
  bool bias, order;
  int threads;

  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof line, "isa %d, %lld x %lld, group %lld, %d bits, parameters %d, n %lld, a%d, bias %d, order %d, threads %d",
                  static_cast<int>(isa), static_cast<long long>(shape.rows), static_cast<long long>(shape.columns),
                  static_cast<long long>(shape.group), shape.bits, static_cast<int>(shape.parameters), static_cast<long long>(n),
                  activations == Activations::a8 ? 8 : 16, bias, order, threads);
    return line;
  }
};

struct Output {
  std::vector<float> y, inputs;  // [n, rows] in the rows' own order; the activations that were multiplied, [n, columns]
};

constexpr float kUntouched = -12345.0f;

// x has rows `columns + 3` apart and starts at an address that is only aligned to floats.
Output run(const Case& c, const Weights& w, const std::vector<float>& x, const std::vector<float>& bias) {
  const Shape& s = c.shape;
  const std::int64_t x_stride = s.columns + 3, y_stride = s.rows + 5;
  std::vector<float> strided(static_cast<std::size_t>(c.n * x_stride + 1), std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t t = 0; t < c.n; ++t)
    std::memcpy(&strided[static_cast<std::size_t>(1 + t * x_stride)], &x[static_cast<std::size_t>(t * s.columns)],
                static_cast<std::size_t>(s.columns) * sizeof(float));
  std::vector<std::int32_t> order(static_cast<std::size_t>(s.rows));
  for (std::int64_t r = 0; r < s.rows; ++r) order[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(s.rows - 1 - r);

  Buffer packed(packed_size(c.isa, s)), inputs(inputs_size(c.isa, c.n, s.columns, s.group, c.activations));
  pack(c.isa, s, w.codes.data(), w.scale.data(), w.zero.data(), packed.data, c.threads);
  quantize_inputs(c.isa, strided.data() + 1, c.n, x_stride, s.columns, s.group, c.activations, inputs.data, c.threads);
  std::vector<float> y(static_cast<std::size_t>(c.n * y_stride), kUntouched);
  matmul(c.isa, s, packed.data, inputs.data, c.n, c.activations, c.bias ? bias.data() : nullptr, c.order ? order.data() : nullptr, y.data(),
         y_stride, c.threads);

  Output out;
  out.inputs.resize(static_cast<std::size_t>(c.n * s.columns));
  dequantize_inputs(c.isa, inputs.data, c.n, s.columns, s.group, c.activations, out.inputs.data());
  out.y.resize(static_cast<std::size_t>(c.n * s.rows));
  bool untouched = true;
  for (std::int64_t t = 0; t < c.n; ++t) {
    for (std::int64_t r = 0; r < s.rows; ++r)
      out.y[static_cast<std::size_t>(t * s.rows + r)] =
          y[static_cast<std::size_t>(t * y_stride + (c.order ? order[static_cast<std::size_t>(r)] : r))];
    for (std::int64_t r = s.rows; r < y_stride; ++r) untouched = untouched && y[static_cast<std::size_t>(t * y_stride + r)] == kUntouched;
  }
  check(untouched, "columns beyond the rows were written: " + c.text());
  return out;
}

// Codes and integer activations: the kernel's fp32 result has to be the int64 one, exactly, while sums stay below 2^24.
void integer_core(const Case& c, Fill fill, std::mt19937& rng) {
  const Weights w = make_weights(c.shape, fill, true, rng);
  const std::vector<float> x = integers(c.n, c.shape.columns, c.shape.group, fill, rng);
  const Output out = run(c, w, x, {});
  bool exact = true;
  for (std::int64_t t = 0; t < c.n; ++t)
    for (std::int64_t r = 0; r < c.shape.rows; ++r) {
      std::int64_t sum = 0;
      for (std::int64_t k = 0; k < c.shape.columns; ++k)
        sum += static_cast<std::int64_t>(w.codes[static_cast<std::size_t>(r * c.shape.columns + k)]) *
               static_cast<std::int64_t>(x[static_cast<std::size_t>(t * c.shape.columns + k)]);
      const float y = out.y[static_cast<std::size_t>(t * c.shape.rows + r)];
      // Beyond 2^24 each conversion to fp32 may round once.
      const double slack = std::llabs(sum) < (1 << 24) && c.shape.columns * 255 * 127 < (1 << 24) ? 0.0 : 4e-7 * std::fabs(double(sum));
      exact = exact && std::fabs(double(y) - double(sum)) <= slack;
    }
  check(exact, "integer core: " + c.text());
  check(out.inputs == x, "integers are their own activations: " + c.text());
}

// Random weights and activations: equal to the fp64 product with the dequantized activations to the rounding of fp32 sums.
void end_to_end(const Case& c, std::mt19937& rng) {
  const Weights w = make_weights(c.shape, Fill::random, false, rng);
  const std::vector<float> x = gaussians(c.n * c.shape.columns, rng), bias = gaussians(c.shape.rows, rng);
  const Output out = run(c, w, x, bias);
  double worst = 0.0, worst_input = 0.0;
  for (std::int64_t t = 0; t < c.n; ++t) {
    for (std::int64_t r = 0; r < c.shape.rows; ++r) {
      double sum = c.bias ? bias[static_cast<std::size_t>(c.order ? c.shape.rows - 1 - r : r)] : 0.0, magnitude = std::fabs(sum);
      for (std::int64_t k = 0; k < c.shape.columns; ++k) {
        const auto g = static_cast<std::size_t>(r * w.groups + k / c.shape.group);
        const double code = w.codes[static_cast<std::size_t>(r * c.shape.columns + k)];
        const double value = out.inputs[static_cast<std::size_t>(t * c.shape.columns + k)];
        sum += double(w.scale[g]) * (code - double(w.zero[g])) * value;
        magnitude += double(w.scale[g]) * (code + double(w.zero[g])) * std::fabs(value);
      }
      worst = std::max(worst, std::fabs(out.y[static_cast<std::size_t>(t * c.shape.rows + r)] - sum) / (magnitude + 1e-30));
    }
    for (std::int64_t k = 0; k < c.shape.columns; ++k) {
      const std::int64_t first = k / c.shape.group * c.shape.group, end = std::min(first + c.shape.group, c.shape.columns);
      float largest = 0.0f;
      for (std::int64_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(x[static_cast<std::size_t>(t * c.shape.columns + i)]));
      const double step = largest / 127.0 / (c.activations == Activations::a16 ? 256.0 / 2.0 : 1.0);
      const auto at = static_cast<std::size_t>(t * c.shape.columns + k);
      worst_input = std::max(worst_input, std::fabs(double(out.inputs[at]) - double(x[at])) / step);
    }
  }
  check(worst < 1e-6, "end to end, off by " + std::to_string(worst) + ": " + c.text());
  check(worst_input < 0.51, "activations off by " + std::to_string(worst_input) + " steps: " + c.text());
}

void round_trip(Isa isa, Shape shape, std::mt19937& rng) {
  const Weights w = make_weights(shape, Fill::random, false, rng);
  Buffer packed(packed_size(isa, shape));
  pack(isa, shape, w.codes.data(), w.scale.data(), w.zero.data(), packed.data, 2);
  std::vector<std::uint8_t> codes(w.codes.size());
  std::vector<float> scale(w.scale.size()), zero(w.zero.size());
  unpack(isa, shape, packed.data, codes.data(), scale.data(), zero.data(), 2);
  check(codes == w.codes && scale == w.scale && zero == w.zero, "packing has no exact inverse at " + std::to_string(shape.bits) + " bits");
}

void threads_change_nothing(Isa isa, Shape shape, std::int64_t n, std::mt19937& rng) {
  Case c{isa, shape, n, Activations::a8, true, false, 1};
  const Weights w = make_weights(shape, Fill::random, false, rng);
  const std::vector<float> x = gaussians(n * shape.columns, rng), bias = gaussians(shape.rows, rng);
  const std::vector<float> one = run(c, w, x, bias).y;
  c.threads = 3;
  check(run(c, w, x, bias).y == one, "results depend on threads: " + c.text());
}

// So does the order in which weights are read.
void order_changes_nothing(Isa isa, Shape shape, std::int64_t n, Activations activations, std::mt19937& rng) {
  const Case c{isa, shape, n, activations, true, true, 2};
  const Weights w = make_weights(shape, Fill::random, false, rng);
  const std::vector<float> x = gaussians(n * shape.columns, rng), bias = gaussians(shape.rows, rng);
  const bool before = read_in_order(false);
  const std::vector<float> several = run(c, w, x, bias).y;
  check(!read_in_order(true), "the order of reading is what was asked for");
  check(run(c, w, x, bias).y == several, "results depend on the order of reading: " + c.text());
  read_in_order(before);
}

// Tile registers give the same bits as the instruction set that they stand in for.
void tiles_change_nothing(Shape shape, std::int64_t n, Activations activations, std::mt19937& rng) {
  const Case c{Isa::avx512_vnni, shape, n, activations, true, true, 2};
  const Weights w = make_weights(shape, Fill::random, false, rng);
  const std::vector<float> x = gaussians(n * shape.columns, rng), bias = gaussians(shape.rows, rng);
  use_tiles(false);
  const std::vector<float> without = run(c, w, x, bias).y;
  use_tiles(true);
  check(run(c, w, x, bias).y == without, "results depend on tile registers: " + c.text());
}

void special_values(Isa isa) {
  const Shape shape{16, 64, 32, 4};
  std::mt19937 rng(5);
  const Weights w = make_weights(shape, Fill::random, false, rng);
  for (const Activations activations : {Activations::a8, Activations::a16}) {
    const Case c{isa, shape, 1, activations, false, false, 1};
    std::vector<float> x(64, 0.0f);
    for (const float y : run(c, w, x, {}).y) check(y == 0.0f, "zeros give zero: " + c.text());
    for (const float odd : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      x[40] = odd;
      for (const float y : run(c, w, x, {}).y) check(std::isnan(y), "infinity and NaN give NaN: " + c.text());
    }
    for (const float tiny : {1e-45f, 2.66e-43f, 1e-38f}) {  // the scale is subnormal or 0
      x.assign(64, tiny);
      for (const float y : run(c, w, x, {}).y) check(std::isfinite(y) && std::fabs(y) < 1e-30f, "tiny inputs stay finite: " + c.text());
    }
    x.assign(64, std::numeric_limits<float>::max() / 2.0f);
    const Output large = run(c, w, x, {});
    for (const float value : large.inputs) check(std::fabs(value / x[0] - 1.0f) < 1e-5f, "the largest input: " + c.text());
  }
}

void parameters_are_exact() {
  const float halves[3] = {0.25f, 65504.0f, 5.9604645e-8f}, wide[3] = {1e30f, 1.0f, 2e-30f}, other[3] = {0.1f, 0.2f, 0.3f};
  const float bf16[3] = {std::ldexp(1.0f, 100), 1.5f, std::ldexp(1.0f, -100)};
  check(exact_parameters(halves, halves, 3) == Parameters::fp16, "fp16 holds halves");
  check(exact_parameters(bf16, halves, 3) == Parameters::bf16, "bf16 holds large powers");
  check(exact_parameters(wide, halves, 3) == Parameters::fp32, "fp32 holds the rest");
  check(exact_parameters(halves, other, 3) == Parameters::fp32, "fp32 holds odd zeros");
}

struct Sparse {
  std::vector<std::int32_t> start{0}, columns;
  std::vector<float> values;
};

Sparse make_sparse(std::int64_t rows, std::int64_t columns, std::mt19937& rng) {
  Sparse sparse;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < row % 11; ++i) {
      sparse.columns.push_back(static_cast<std::int32_t>(rng() % static_cast<unsigned>(columns)));
      sparse.values.push_back(static_cast<float>(rng() % 100) / 16.0f);
    }
    sparse.start.push_back(static_cast<std::int32_t>(sparse.columns.size()));
  }
  return sparse;
}

// A dense matrix of zeros, so that the outliers alone are seen: once in the product, once in a call of their own; both into y of ones.
void outliers(Isa isa, std::int64_t rows, std::int64_t columns, std::int64_t n, bool ordered, std::mt19937& rng) {
  const std::int64_t stride = columns + 5, y_stride = rows + 3;
  const Sparse sparse = make_sparse(rows, columns, rng);
  const std::vector<float> x = gaussians(n * stride, rng), ones(static_cast<std::size_t>(rows), 1.0f);
  std::vector<std::int32_t> order;
  for (std::int64_t row = 0; row < rows; ++row) order.push_back(static_cast<std::int32_t>(rows - 1 - row));
  const std::int32_t* to = ordered ? order.data() : nullptr;
  check(packable_outliers(sparse.columns.data(), sparse.values.data(), static_cast<std::int64_t>(sparse.columns.size())), "packable");

  const Shape shape{rows, columns, 32, 4};
  const std::size_t groups = static_cast<std::size_t>(rows * groups_of(columns, 32));
  const std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * columns), 0);
  const std::vector<float> scale(groups, 1.0f), zero(groups, 0.0f);
  Buffer packed(packed_size(isa, shape)), inputs(inputs_size(isa, n, columns, 32, Activations::a8));
  Buffer packed_outliers(packed_outliers_size(rows, sparse.start.data()));
  pack(isa, shape, codes.data(), scale.data(), zero.data(), packed.data, 1);
  pack_outliers(rows, sparse.start.data(), sparse.columns.data(), sparse.values.data(), packed_outliers.data);
  quantize_inputs(isa, x.data(), n, stride, columns, 32, Activations::a8, inputs.data, 1);

  std::vector<float> together(static_cast<std::size_t>(n * y_stride), 1.0f), alone = together;
  const Outliers on_top{packed_outliers.data, x.data(), stride};
  matmul(isa, shape, packed.data, inputs.data, n, Activations::a8, ones.data(), to, together.data(), y_stride, 2, &on_top);
  add_outliers(x.data(), n, stride, sparse.start.data(), sparse.columns.data(), sparse.values.data(), rows, to, alone.data(), y_stride, 2);
  double worst = 0.0;
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = 1.0;
      for (auto i = sparse.start[static_cast<std::size_t>(r)]; i < sparse.start[static_cast<std::size_t>(r + 1)]; ++i)
        sum += double(sparse.values[static_cast<std::size_t>(i)]) *
               x[static_cast<std::size_t>(t * stride + sparse.columns[static_cast<std::size_t>(i)])];
      const auto at = static_cast<std::size_t>(t * y_stride + (to ? to[r] : r));
      worst = std::max({worst, std::fabs(together[at] - sum), std::fabs(alone[at] - sum)});
    }
  check(worst < 1e-4, "outliers, off by " + std::to_string(worst) + ", isa " + std::to_string(static_cast<int>(isa)) + ", n " + std::to_string(n));
}

void refused_outliers() {
  const std::int32_t columns[2] = {3, 65536}, near[2] = {3, 65535};
  const float values[2] = {0.1f, 0.5f}, halves[2] = {0.25f, 0.5f};
  check(!packable_outliers(columns, halves, 2) && !packable_outliers(near, values, 2) && packable_outliers(near, halves, 2),
        "packable outliers");
}

void refused_shapes(Isa isa) {
  for (const int bits : {-1, 0, 1, 7, 9, 16}) check(!valid(isa, {16, 64, 32, bits}), "a width that there is not");
  for (const Shape& shape : {Shape{0, 64, 32, 4}, Shape{16, 0, 32, 4}, Shape{16, 64, 0, 4}, Shape{16, 70000, 70000, 4}})
    check(!valid(isa, shape), "a shape that there is not");
  check(valid(isa, {1, 1, 1, 8}) && valid(isa, {16, 65536, 1 << 20, 8}), "small and large groups");
}

// Nearest values against the same operations, and errors of tries against sums in double, in buffers without a byte to spare.
void rounding(Isa isa, std::int64_t rows, std::int64_t columns, std::int64_t group, std::int64_t tries, std::mt19937& rng) {
  const std::int64_t groups = columns / group, cells = rows * groups, tables = tries * cells;
  const int top = static_cast<int>(rng() % 15) + 1;
  const std::string what = "rounding: isa " + std::to_string(static_cast<int>(isa)) + ", " + std::to_string(rows) + " rows, groups of " +
                           std::to_string(group) + ", " + std::to_string(tries) + " tries";
  const auto floats = [](std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); };
  const Buffer room_for_weights(floats(rows * columns)), room_for_values(floats(rows * columns)), room_for_errors(floats(tables));
  auto* weights = static_cast<float*>(room_for_weights.data);
  auto *values = static_cast<float*>(room_for_values.data), *errors = static_cast<float*>(room_for_errors.data);
  const std::vector<float> drawn = gaussians(rows * columns, rng), gram = gaussians(columns * group, rng);
  std::copy(drawn.begin(), drawn.end(), weights);
  std::vector<float> scale(static_cast<std::size_t>(tables)), zero(scale.size());
  for (auto& one : scale) one = static_cast<float>(rng() % 1000 + 50) / 2048.0f;
  for (auto& one : zero) one = static_cast<float>(rng() % static_cast<unsigned>(2 * top + 1)) / 2.0f;
  std::vector<float> matrices(gram.size());  // symmetric
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t i = 0; i < group; ++i)
      for (std::int64_t j = 0; j < group; ++j) {
        const auto at = [&](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>((g * group + a) * group + b); };
        matrices[at(i, j)] = gram[at(i < j ? i : j, i < j ? j : i)];
      }

  range_errors(isa, weights, rows, columns, group, tries, scale.data(), zero.data(), top, matrices.data(), errors);
  bool same = true, near = true;
  for (std::int64_t t = 0; t < tries; ++t) {
    const std::size_t first = static_cast<std::size_t>(t * cells);
    nearest(isa, weights, rows, columns, group, scale.data() + first, zero.data() + first, top, values);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::size_t cell = first + static_cast<std::size_t>(r * groups + g);
        const float* w = weights + r * columns + g * group;
        const float* v = values + r * columns + g * group;
        double error = 0.0, size = 0.0;
        for (std::int64_t i = 0; i < group; ++i) {
          const float place = std::nearbyint(std::min(std::max(w[i] / scale[cell] + zero[cell], 0.0f), static_cast<float>(top)));
          same &= v[i] == (place - zero[cell]) * scale[cell];
          for (std::int64_t j = 0; j < group; ++j) {
            const double term = static_cast<double>(v[i] - w[i]) * (v[j] - w[j]) *
                                matrices[static_cast<std::size_t>((g * group + i) * group + j)];
            error += term;
            size += std::abs(term);
          }
        }
        near &= std::abs(errors[cell] - error) <= 1e-5 * size;
      }
  }
  check(same, what + ": nearest values");
  check(near, what + ": errors");
}

void battery(Isa isa, bool thorough) {
  std::mt19937 rng(1234 + static_cast<unsigned>(isa));
  refused_shapes(isa);
  special_values(isa);
  const bool native = read_in_order(true);
  for (const bool in_order : {false, true})
    for (const std::int64_t n : {1, 2, 3, 16, 70}) {
      read_in_order(in_order);
      outliers(isa, 37, 200, n, n % 2 == 0, rng);
      outliers(isa, 128, 96, n, n % 2 == 1, rng);
    }
  read_in_order(native);
  for (const int bits : {2, 3, 4, 5, 6, 8})
    for (const std::int64_t n : {1, 2, 3, 8, 9})
      for (const Activations activations : {Activations::a8, Activations::a16})
        order_changes_nothing(isa, {133, 300, 128, bits, Parameters::fp16}, n, activations, rng);
  for (const std::int64_t group : {1, 3, 4, 16, 31, 128})
    for (const std::int64_t rows : {1, 15, 16, 37})
      for (const std::int64_t tries : {1, 2, 3, 10}) rounding(isa, rows, 3 * group, group, tries, rng);
  const std::vector<Shape> shapes = {{16, 128, 128, 0}, {64, 512, 128, 0}, {80, 256, 64, 0},  {1, 32, 32, 0},     {17, 96, 48, 0},
                                     {33, 100, 16, 0},  {5, 7, 7, 0},      {130, 300, 128, 0}, {48, 448, 448, 0}, {18, 2048, 2048, 0}};
  const std::vector<std::int64_t> batches = thorough ? std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 25}
                                                     : std::vector<std::int64_t>{1, 2, 3, 4, 5, 7, 8, 13};
  int turn = 0;
  for (const int bits : {2, 3, 4, 5, 6, 8})
    for (Shape shape : shapes) {
      shape.bits = bits;
      for (const Parameters parameters : {Parameters::fp32, Parameters::fp16, Parameters::bf16}) {
        shape.parameters = parameters;
        round_trip(isa, shape, rng);
      }
      for (const std::int64_t n : batches)
        for (const Activations activations : {Activations::a8, Activations::a16}) {
          ++turn;
          shape.parameters = static_cast<Parameters>(turn % 3);
          const Case c{isa, shape, n, activations, turn % 2 == 0, turn % 5 < 2, 1 + turn % 2};
          integer_core({isa, shape, n, activations, false, c.order, c.threads}, Fill::random, rng);
          integer_core({isa, shape, n, activations, false, c.order, c.threads}, Fill::extreme, rng);
          end_to_end(c, rng);
        }
      threads_change_nothing(isa, shape, 1, rng);
      threads_change_nothing(isa, shape, 21, rng);
    }
  // The longest group there is, all codes and activations at their largest: the int32 sums just fit.
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    const Shape shape{16, 65536, 65536, bits};
    for (const std::int64_t n : {1, 5}) integer_core({isa, shape, n, Activations::a8, false, false, 1}, Fill::extreme, rng);
  }
  for (const int bits : {2, 3, 4, 5, 6, 8})
    for (const std::int64_t n : {8, 9, 16, 17, 32, 33, 75}) {
      for (const Activations activations : {Activations::a8, Activations::a16})
        integer_core({isa, {50, 384, 128, bits}, n, activations, false, true, 2}, Fill::random, rng);
      if (isa != Isa::avx512_vnni || !use_tiles(true)) continue;
      tiles_change_nothing({65, 384, 128, bits, Parameters::fp16}, n, n % 2 ? Activations::a8 : Activations::a16, rng);
      tiles_change_nothing({16, 200, 200, bits, Parameters::bf16}, n, Activations::a8, rng);
      tiles_change_nothing({31, 4096, 64, bits}, 9 * n, Activations::a16, rng);
    }
  // Enough tokens that inputs go through the cache in several rounds.
  integer_core({isa, {70, 4096, 4096, 3}, 401, Activations::a8, false, false, 2}, Fill::random, rng);
}

}  // namespace

// Arguments: numbers of instruction sets to test (default: all that this machine has); "quick" for fewer batch sizes.
int main(int count, char** arguments) {
  bool thorough = true;
  std::vector<Isa> sets;
  for (int i = 1; i < count; ++i) {
    if (std::string(arguments[i]) == "quick")
      thorough = false;
    else
      sets.push_back(static_cast<Isa>(std::atoi(arguments[i])));
  }
  if (sets.empty())
    for (int i = 0; i <= static_cast<int>(Isa::neon_i8mm); ++i)
      if (supported(static_cast<Isa>(i))) sets.push_back(static_cast<Isa>(i));
  parameters_are_exact();
  refused_outliers();
  check(supported(Isa::portable) && supported(best()), "there is always a supported instruction set");
  for (const Isa isa : sets) {
    const int before = checks;
    if (!supported(isa)) {
      std::printf("instruction set %d: not here\n", static_cast<int>(isa));
      continue;
    }
    battery(isa, thorough);
    std::printf("instruction set %d: %d checks\n", static_cast<int>(isa), checks - before);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
