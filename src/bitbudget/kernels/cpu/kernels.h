// CPU kernels for weights of 2, 3, 4, 5, 6 and 8 bits: y = W x, where W[row, column] = scale · (code − zero), scale and zero one per
// (row, group of columns), codes unsigned, and x is rounded to int8 per (token, group of columns).
//
//     y[t, r] = Σ_g a[t, g] · scale[r, g] · ( Σ_{c in g} code[r, c] · q[t, c]  −  zero[r, g] · Σ_{c in g} q[t, c] )
//
// The inner sum is exact in int32; everything across groups is fp32. Packing is apart from the stored format and has an exact inverse.
// `packed` and `inputs` have to be aligned to 64 bytes; all other arrays only to their elements.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bitbudget {

enum class Isa : int { portable = 0, avx2 = 1, avx2_vnni = 2, avx512_vnni = 3, neon_dotprod = 4, neon_i8mm = 5 };

// a8: q is int8. a16: a second int8 holds the rest of the rounding in 1/256 of a step; the kernels multiply both
// while they hold the codes.
enum class Activations : int { a8 = 0, a16 = 1 };

// How scales and zeros are held in the packing. fp16: both fp16. bf16: scales bf16, zeros fp16. They take 4 bytes per (row, group), or 8.
enum class Parameters : int { fp32 = 0, fp16 = 1, bf16 = 2 };

struct Shape {
  std::int64_t rows, columns;
  std::int64_t group;  // columns that share a scale and a zero; the last group of a row may be shorter
  int bits;
  Parameters parameters = Parameters::fp32;
};

bool supported(Isa isa);  // compiled into this library, and this machine has it
Isa best();               // the fastest supported one

// avx512_vnni multiplies 32 tokens and more with AMX where the machine has it, to the same bits. false turns that off, for tests and
// comparisons; returns whether it is on.
bool use_tiles(bool wanted);

// Whether a thread that multiplies few tokens reads the weights in the order they lie in and leaves fetching to the processor. At first so
// on processors of AMD: there one stream is fastest, where others need several and addresses told ahead. Results do not depend on it.
// For tests and comparisons; returns what was.
bool read_in_order(bool wanted);

// Whether the kernels take this shape; where not, the caller takes the reference kernel. Groups are padded to multiples of 32 columns and
// rows to multiples of 16, so small odd groups are correct but cost their padding.
bool valid(Isa isa, Shape shape);

// The narrowest `Parameters` that hold these scales and zeros (both [count]) exactly.
Parameters exact_parameters(const float* scale, const float* zero, std::int64_t count);

// Weights. `scale`, `zero`: [rows, groups]; values that `shape.parameters` cannot hold are rounded to nearest.
std::size_t packed_size(Isa isa, Shape shape);  // bytes, scales and zeros included
void pack(Isa isa, Shape shape, const std::uint8_t* codes /*[rows, columns]*/, const float* scale, const float* zero, void* packed,
          int threads);
void unpack(Isa isa, Shape shape, const void* packed, std::uint8_t* codes, float* scale, float* zero, int threads);

// Activations: q = round(x / a) with a = max|x| / 127 per token and group, and the sum of q per group. One set of inputs serves every
// weight with these columns and this group size, whatever its width. Groups with a value that is not finite give NaN.
std::size_t inputs_size(Isa isa, std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations);
void quantize_inputs(Isa isa, const float* x /*[n, columns], rows `stride` apart*/, std::int64_t n, std::int64_t stride,
                     std::int64_t columns, std::int64_t group, Activations activations, void* inputs, int threads);
void dequantize_inputs(Isa isa, const void* inputs, std::int64_t n, std::int64_t columns, std::int64_t group, Activations activations,
                       float* x /*[n, columns]*/);  // what the kernels multiply with, for tests

// Additive outliers, a sparse matrix in CSR form on top of the dense one, multiplied with x itself and not with its int8. Packed, they take
// 4 bytes each, and the product adds them: of one token before it reads codes, of more tokens when it is done, sixteen tokens at once.
// `packable`: columns below 65536 and values that fp16 holds; for others add_outliers does the same from CSR in a call of its own.
bool packable_outliers(const std::int32_t* columns, const float* values, std::int64_t count);
std::size_t packed_outliers_size(std::int64_t rows, const std::int32_t* rows_start /*[rows + 1]*/);
void pack_outliers(std::int64_t rows, const std::int32_t* rows_start, const std::int32_t* columns, const float* values, void* packed);

struct Outliers {
  const void* packed;  // aligned to 64 bytes
  const float* x;      // [n, columns], rows `stride` apart
  std::int64_t stride;
};

// y[t, o] = W[r] · x[t] + bias[o] with o = order[r]. `bias`: one for each column of y, or null. `order`: [rows], the column of y that each
// row goes to, or null for 0 … rows − 1. Columns of y that no row goes to stay as they are. Results do not depend on `threads`.
void matmul(Isa isa, Shape shape, const void* packed, const void* inputs, std::int64_t n, Activations activations, const float* bias,
            const std::int32_t* order, float* y /*[n, …], rows `stride` apart*/, std::int64_t stride, int threads,
            const Outliers* outliers = nullptr);

// y[t, order[r]] += Σ values · x[t, columns]; fp32.
void add_outliers(const float* x, std::int64_t n, std::int64_t stride, const std::int32_t* rows_start /*[rows + 1]*/,
                  const std::int32_t* columns, const float* values, std::int64_t rows, const std::int32_t* order, float* y,
                  std::int64_t y_stride, int threads);

// Weights [rows, columns] as the nearest code from 0 to `top` gives them back, scale · (code − zero), to the bit what fp32 operations one
// after the other give. Groups divide the columns, and scales [rows, groups] are not 0. On one thread, as the next.
void nearest(Isa isa, const float* weights, std::int64_t rows, std::int64_t columns, std::int64_t group, const float* scale,
             const float* zero, int top, float* values /*[rows, columns]*/);

// For every try of the ranges of a matrix: errors[try, row, group] = δᵀ H δ, where δ = scale · (code − zero) − w is what rounding the
// group's weights to the nearest code up to `top` changes, and H the group's matrix in `gram`, of which the upper triangle is read.
void range_errors(Isa isa, const float* weights /*[rows, columns]*/, std::int64_t rows, std::int64_t columns, std::int64_t group,
                  std::int64_t tries, const float* scale /*[tries, rows, groups]*/, const float* zero /*the same*/, int top,
                  const float* gram /*[groups, group, group]*/, float* errors /*[tries, rows, groups]*/);

// Reads all words and returns something of them. side_by_side: each thread eight parts of them at once, for on some processors one
// stream alone waits for memory; on others it is the fastest.
std::uint64_t read_all(const std::uint64_t* words, std::size_t count, int threads, bool side_by_side);

}  // namespace bitbudget
