// The public functions: they find the instruction set's kernels and resolve addresses.

#include <atomic>
#include <initializer_list>
#include <new>

#include "kernel_table.h"
#include "processor.h"

namespace bitbudget {
namespace {

const Kernels* kernels(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return portable_kernels();
#if defined(BITBUDGET_X86)
    case Isa::avx2:
      return avx2_kernels();
    case Isa::avx2_vnni:
      return avx2_vnni_kernels();
    case Isa::avx512_vnni:
      return avx512_vnni_kernels();
#endif
#if defined(BITBUDGET_ARM)
    case Isa::neon_dotprod:
      return neon_dotprod_kernels();
    case Isa::neon_i8mm:
      return neon_i8mm_kernels();
#endif
    default:
      return nullptr;
  }
}

// Waking a thread takes as long as some hundred thousand multiplications of codes.
int threads_for(std::int64_t products, int threads) {
  constexpr std::int64_t kWorthAThread = 1 << 17;
  const std::int64_t most = products / kWorthAThread + 1;
  return threads < 1 ? 1 : static_cast<int>(smaller(threads, most));
}

std::atomic<bool> tiles_wanted{true};
std::atomic<bool> in_order{processor_reads_in_order()};

void multiply_dense(Isa isa, const Product& product) {
#if defined(BITBUDGET_AMX)
  static const bool has_tiles = processor_has_tiles();
  if (isa == Isa::avx512_vnni && has_tiles && tiles_wanted && worth_tiles(product)) return multiply_tiles(product);
#endif
  kernels(isa)->multiply(product);
}

void multiply(Isa isa, const Product& product) {
  if (!product.outliers.starts || product.inputs.n == 1) return multiply_dense(isa, product);
  Product dense = product;
  dense.outliers = {};
  multiply_dense(isa, dense);
  kernels(isa)->add_outliers(product);
}

constexpr std::align_val_t kAlignment{kLineBytes};

}  // namespace

Memory::Memory(std::int64_t bytes) : data_(static_cast<std::uint8_t*>(::operator new(static_cast<std::size_t>(bytes), kAlignment))) {}
Memory::~Memory() { ::operator delete(data_, kAlignment); }

bool supported(Isa isa) { return kernels(isa) != nullptr && processor_has(isa); }

Isa best() {
  for (const Isa isa : {Isa::avx512_vnni, Isa::avx2_vnni, Isa::avx2, Isa::neon_i8mm, Isa::neon_dotprod})
    if (supported(isa)) return isa;
  return Isa::portable;
}

bool use_tiles(bool wanted) {
  tiles_wanted = wanted;
  return wanted && supported(Isa::avx512_vnni) && processor_has_tiles();
}

bool read_in_order(bool wanted) { return in_order.exchange(wanted); }

bool valid(Isa, Shape shape) {
  const bool width = (shape.bits >= 2 && shape.bits <= 6) || shape.bits == 8;
  if (!width || shape.rows < 1 || shape.columns < 1 || shape.group < 1) return false;
  return groups_of(shape.columns, shape.group).padded <= kLargestGroup;
}

std::size_t inputs_size(Isa isa, std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations) {
  return static_cast<std::size_t>(inputs_layout(n, columns, group, activations, kernels(isa)->widest).bytes());
}

void quantize_inputs(Isa isa, const float* x, std::int64_t n, std::int64_t stride, std::int64_t columns, std::int64_t group,
                     Activations activations, void* inputs, int threads) {
  if (n == 0) return;
  const Kernels* with = kernels(isa);
  const InputsLayout layout = inputs_layout(n, columns, group, activations, with->widest);
  auto* values = static_cast<std::int8_t*>(inputs);
  auto* scales = reinterpret_cast<float*>(values + layout.values_bytes);
  with->quantize({layout, x, stride, columns, smaller(group, columns), values, scales, scales + layout.groups.count * n,
                  threads_for(layout.n * columns, threads)});
}

void dequantize_inputs(Isa isa, const void* inputs, std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations,
                       float* x) {
  const InputsLayout layout = inputs_layout(n, columns, group, activations, kernels(isa)->widest);
  const auto* values = static_cast<const std::int8_t*>(inputs);
  const auto* scales = reinterpret_cast<const float*>(values + layout.values_bytes);
  for (std::int64_t index = 0; index < layout.blocks; ++index) {
    const TokenBlock block = layout.block(index);
    for (std::int64_t token = block.first; token < block.first + block.count; ++token)
      for (std::int64_t column = 0; column < columns; ++column) {
        const std::int64_t at = column / group, within = column % group;
        const std::int8_t* value = values + layout.values(at, block.first) +
                                   ((within / 4 * block.count + token - block.first) * layout.streams) * 4 + within % 4;
        const float whole = layout.streams == 2 ? 256.0f * value[0] + value[4] : value[0];
        x[token * columns + column] = scales[at * n + token] * whole;
      }
  }
}

void matmul(Isa isa, Shape shape, const void* packed, const void* inputs, std::int64_t n, Activations activations, const float* bias,
            const std::int32_t* order, float* y, std::int64_t stride, int threads, const Outliers* outliers) {
  if (n == 0) return;
  Product product{};
  product.weights = weights_layout(shape);
  product.inputs = inputs_layout(n, shape.columns, shape.group, activations, kernels(isa)->widest);
  product.packed = static_cast<const std::uint8_t*>(packed);
  product.values = static_cast<const std::int8_t*>(inputs);
  product.scales = reinterpret_cast<const float*>(product.values + product.inputs.values_bytes);
  product.sums = product.scales + product.inputs.groups.count * n;
  product.bias = bias;
  product.order = order;
  if (outliers) {
    const auto* packed_outliers = static_cast<const std::uint8_t*>(outliers->packed);
    const auto* starts = reinterpret_cast<const std::int32_t*>(packed_outliers);
    const OutliersLayout layout = outliers_layout(shape.rows, starts[shape.rows]);
    product.outliers = {starts, reinterpret_cast<const std::uint16_t*>(packed_outliers + layout.columns),
                        reinterpret_cast<const std::uint16_t*>(packed_outliers + layout.values)};
    product.x = outliers->x;
    product.x_stride = outliers->stride;
  }
  product.y = y;
  product.stride = stride;
  product.in_order = in_order;
  product.threads = threads_for(shape.rows * product.inputs.groups.count * product.inputs.groups.padded * n, threads);
  multiply(isa, product);
}

void nearest(Isa isa, const float* weights, std::int64_t rows, std::int64_t columns, std::int64_t group, const float* scale,
             const float* zero, int top, float* values) {
  kernels(isa)->nearest({weights, rows, columns, group, scale, zero, static_cast<float>(top), values});
}

void range_errors(Isa isa, const float* weights, std::int64_t rows, std::int64_t columns, std::int64_t group, std::int64_t tries,
                  const float* scale, const float* zero, int top, const float* gram, float* errors) {
  kernels(isa)->range_errors({weights, rows, columns, group, tries, scale, zero, static_cast<float>(top), gram, errors});
}

}  // namespace bitbudget
