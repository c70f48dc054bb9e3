// What one instruction set offers, as a table of functions; dispatch.cpp picks the table, isa_*.cpp each fill one.
//
// Everything the isa_*.cpp files include has internal linkage (static, or a template over a class of an unnamed namespace): they are
// compiled with different machine flags, and the linker must never keep the copy of a function that needs the larger machine.

#pragma once

#include "layout.h"

namespace bitbudget {

// Packed outliers, addresses resolved.
struct SparseRows {
  const std::int32_t* starts;  // [rows + 1]
  const std::uint16_t* columns;
  const std::uint16_t* values;  // fp16
};

// One product, addresses resolved.
struct Product {
  WeightsLayout weights;
  InputsLayout inputs;
  const std::uint8_t* packed;
  const std::int8_t* values;
  const float* scales;  // of inputs, [groups, n]
  const float* sums;    // of inputs, [groups, n]
  const float* bias;
  const std::int32_t* order;
  SparseRows outliers;  // starts is null where there are none, or where they are added later
  const float* x;       // what they are multiplied with
  std::int64_t x_stride;
  float* y;
  std::int64_t stride;
  int threads;
  bool in_order;  // read_in_order (kernels.h)
};

struct Quantization {
  InputsLayout inputs;
  const float* x;
  std::int64_t stride, columns, group;
  std::int8_t* values;
  float* scales;
  float* sums;
  int threads;
};

// A matrix to round (kernels.h).
struct Rounding {
  const float* weights;
  std::int64_t rows, columns, group;
  const float* scale;
  const float* zero;
  float top;
  float* values;
};

// Tries of the ranges of a matrix, addresses resolved (kernels.h).
struct RangeTries {
  const float* weights;
  std::int64_t rows, columns, group, tries;
  const float* scale;
  const float* zero;
  float top;
  const float* gram;
  float* errors;
};

// Working memory, aligned to 64 bytes; out of line (dispatch.cpp) for the reason above.
class Memory {
 public:
  explicit Memory(std::int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* data_;
};

struct Kernels {
  int widest;  // streams of inputs that are multiplied at once
  void (*multiply)(const Product&);      // with outliers only where there is one token
  void (*add_outliers)(const Product&);  // to what multiply left in y
  void (*quantize)(const Quantization&);
  void (*nearest)(const Rounding&);
  void (*range_errors)(const RangeTries&);
};

const Kernels* portable_kernels();
#if defined(BITBUDGET_X86)
const Kernels* avx2_kernels();
const Kernels* avx2_vnni_kernels();
const Kernels* avx512_vnni_kernels();
#endif
#if defined(BITBUDGET_AMX)
bool worth_tiles(const Product& product);
void multiply_tiles(const Product& product);  // in place of avx512_vnni's, where processor_has_tiles()
#endif
#if defined(BITBUDGET_ARM)
const Kernels* neon_dotprod_kernels();
const Kernels* neon_i8mm_kernels();
#endif

}  // namespace bitbudget
