// The nanobind module `bitbudget.kernels._cpu`. Tensors come as addresses with their sizes in bytes, so that nothing here depends
// on torch's ABI; every size is checked against the shape before an address is used (checks.h).

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu/kernels.h"
#include "cpu/layout.h"
#include "weight.h"

namespace nb = nanobind;
using namespace nb::literals;
using bitbudget::kTileRows;

namespace {

bool valid(int isa, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters) {
  const Shape shape{rows, columns, group, bits, parameters_of(parameters)};
  return supported(isa) && is_small(shape) && bitbudget::valid(static_cast<Isa>(isa), shape);
}

std::size_t packed_size(int isa, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters) {
  return bitbudget::packed_size(isa_of(isa), checked(isa_of(isa), rows, columns, group, bits, parameters));
}

std::int64_t groups_of(const Shape& shape) { return (shape.columns + shape.group - 1) / shape.group; }

struct Codes {  // one bit stream a row, padded to 32-bit words: code j of a row stands at bit j * bits
  std::uint8_t* words;
  std::int64_t row_bytes;
};

Codes codes_at(std::uintptr_t address, std::size_t given, const Shape& shape) {
  const std::int64_t row_bytes = (shape.columns * shape.bits + 31) / 32 * 4;
  const std::size_t needed = static_cast<std::size_t>(shape.rows * row_bytes);
  return {at<std::uint8_t>(address, given, needed, "too few bytes of codes"), row_bytes};
}

void decode_row(const std::uint8_t* stream, int bits, std::int64_t count, std::uint8_t* codes) {
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  for (std::int64_t first = 0; first < count; first += 8, stream += bits) {
    const int here = static_cast<int>(count - first < 8 ? count - first : 8);
    std::uint64_t eight = 0;  // eight codes are `bits` whole bytes
    std::memcpy(&eight, stream, static_cast<std::size_t>((here * bits + 7) / 8));
    for (int place = 0; place < here; ++place) codes[first + place] = static_cast<std::uint8_t>((eight >> (place * bits)) & mask);
  }
}

void encode_row(const std::uint8_t* codes, int bits, std::int64_t count, std::uint8_t* stream, std::int64_t row_bytes) {
  std::memset(stream, 0, static_cast<std::size_t>(row_bytes));
  for (std::int64_t first = 0; first < count; first += 8, stream += bits) {
    const int here = static_cast<int>(count - first < 8 ? count - first : 8);
    std::uint64_t eight = 0;
    for (int place = 0; place < here; ++place) eight |= static_cast<std::uint64_t>(codes[first + place]) << (place * bits);
    std::memcpy(stream, &eight, static_cast<std::size_t>((here * bits + 7) / 8));
  }
}

// Scales and zeros are [rows, groups] of floats.
float* parameters_at(std::uintptr_t address, std::size_t given, const Shape& shape) {
  return at<float>(address, given, sizeof(float) * static_cast<std::size_t>(shape.rows * groups_of(shape)),
                   "too few scales or zeros");
}

// Calls visit(first row, shape of a few rows, address of their packed bytes) for all rows. Tiles of kTileRows rows are packed one after
// the other (cpu/layout.h), so a few rows at a time give the same bytes as all, and codes of a byte each never exist for a whole matrix.
template <class Visit>
void each_chunk(Isa isa, const Shape& shape, std::uint8_t* packed, Visit&& visit) {
  constexpr std::int64_t kChunkCodes = std::int64_t{1} << 22;
  const std::int64_t step = (kChunkCodes / shape.columns / kTileRows > 1 ? kChunkCodes / shape.columns / kTileRows : 1) * kTileRows;
  for (std::int64_t row = 0; row < shape.rows; row += step) {
    Shape few = shape;
    few.rows = shape.rows - row < step ? shape.rows - row : step;
    visit(row, few, packed);
    packed += bitbudget::packed_size(isa, few);
  }
}

std::unique_ptr<std::uint8_t[]> bytes_for(const Shape& shape) {
  return std::unique_ptr<std::uint8_t[]>(new std::uint8_t[static_cast<std::size_t>(shape.rows * shape.columns)]);
}

void pack(int isa_number, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters, std::uintptr_t codes,
          std::size_t codes_bytes, std::uintptr_t scale, std::uintptr_t zero, std::size_t table_bytes, std::uintptr_t packed,
          std::size_t packed_bytes, int threads) {
  const Isa isa = isa_of(isa_number);
  const Shape shape = checked(isa, rows, columns, group, bits, parameters);
  const Codes stored = codes_at(codes, codes_bytes, shape);
  const float *scales = parameters_at(scale, table_bytes, shape), *zeros = parameters_at(zero, table_bytes, shape);
  auto* target = static_cast<std::uint8_t*>(aligned(packed, packed_bytes, bitbudget::packed_size(isa, shape), "too few packed bytes"));
  threads = threads_of(threads);
  each_chunk(isa, shape, target, [&](std::int64_t first, const Shape& few, std::uint8_t* to) {
    const auto wide = bytes_for(few);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < few.rows; ++row)
      decode_row(stored.words + (first + row) * stored.row_bytes, bits, columns, wide.get() + row * columns);
    bitbudget::pack(isa, few, wide.get(), scales + first * groups_of(shape), zeros + first * groups_of(shape), to, threads);
  });
}

void unpack(int isa_number, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters, std::uintptr_t packed,
            std::size_t packed_bytes, std::uintptr_t codes, std::size_t codes_bytes, std::uintptr_t scale, std::uintptr_t zero,
            std::size_t table_bytes, int threads) {
  const Isa isa = isa_of(isa_number);
  const Shape shape = checked(isa, rows, columns, group, bits, parameters);
  const Codes stored = codes_at(codes, codes_bytes, shape);
  float *scales = parameters_at(scale, table_bytes, shape), *zeros = parameters_at(zero, table_bytes, shape);
  auto* source = static_cast<std::uint8_t*>(aligned(packed, packed_bytes, bitbudget::packed_size(isa, shape), "too few packed bytes"));
  threads = threads_of(threads);
  each_chunk(isa, shape, source, [&](std::int64_t first, const Shape& few, const std::uint8_t* from) {
    const auto wide = bytes_for(few);
    bitbudget::unpack(isa, few, from, wide.get(), scales + first * groups_of(shape), zeros + first * groups_of(shape), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < few.rows; ++row)
      encode_row(wide.get() + row * columns, bits, columns, stored.words + (first + row) * stored.row_bytes, stored.row_bytes);
  });
}

// Decodes some rows to fp32 [count, columns], scale * (code - zero).
void lookup(int isa_number, std::int64_t rows, std::int64_t columns, std::int64_t group, int bits, int parameters, std::uintptr_t packed,
            std::size_t packed_bytes, std::uintptr_t ids, std::size_t ids_bytes, std::uintptr_t y, std::size_t y_bytes, int threads) {
  const Isa isa = isa_of(isa_number);
  const Shape shape = checked(isa, rows, columns, group, bits, parameters);
  const auto* tiles =
      static_cast<const std::uint8_t*>(aligned(packed, packed_bytes, bitbudget::packed_size(isa, shape), "too few packed bytes"));
  const auto count = static_cast<std::int64_t>(ids_bytes / sizeof(std::int64_t));
  const auto* wanted = at<std::int64_t>(ids, ids_bytes, ids_bytes, "no ids");
  auto* result = at<float>(y, y_bytes, strided(count, columns, columns), "too few bytes for y");
  for (std::int64_t i = 0; i < count; ++i) require(wanted[i] >= 0 && wanted[i] < rows, "a row outside the weight");
  Shape tile = shape;
  tile.rows = kTileRows;
  const auto tile_bytes = static_cast<std::int64_t>(bitbudget::packed_size(isa, tile));
  const std::int64_t groups = groups_of(shape), most = columns < group ? columns : group;
#pragma omp parallel for num_threads(threads_of(threads)) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t first = wanted[i] / kTileRows * kTileRows, within = wanted[i] - first;
    Shape few = shape;
    few.rows = rows - first < kTileRows ? rows - first : kTileRows;
    const auto codes = bytes_for(few);
    std::unique_ptr<float[]> table(new float[static_cast<std::size_t>(2 * few.rows * groups)]);
    float *scale = table.get(), *zero = scale + few.rows * groups;
    bitbudget::unpack(isa, few, tiles + first / kTileRows * tile_bytes, codes.get(), scale, zero, 1);
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::int64_t place = within * groups + column / most;
      result[i * columns + column] = scale[place] * (static_cast<float>(codes[within * columns + column]) - zero[place]);
    }
  }
}

int exact_parameters(std::uintptr_t scale, std::uintptr_t zero, std::size_t bytes) {
  const std::size_t count = bytes / sizeof(float);
  return static_cast<int>(bitbudget::exact_parameters(at<float>(scale, bytes, count, "no scales"), at<float>(zero, bytes, count, "no zeros"),
                                                      static_cast<std::int64_t>(count)));
}

// Row pointers [rows + 1] that begin at 0, do not fall, and end at `count`.
const std::int32_t* pointers_at(std::uintptr_t address, std::size_t given, std::int64_t rows, std::int64_t count) {
  require(rows > 0 && rows <= kLargest, "no rows");
  const auto* pointers = at<std::int32_t>(address, given, sizeof(std::int32_t) * static_cast<std::size_t>(rows + 1), "too few row pointers");
  require(pointers[0] == 0 && pointers[rows] == count, "row pointers do not span the values");
  for (std::int64_t row = 0; row < rows; ++row) require(pointers[row] <= pointers[row + 1], "row pointers fall");
  return pointers;
}

// Bytes that outliers take packed into the product, or 0 where they cannot be. Columns are int32, values fp32, `count` of both.
std::size_t packed_outliers_size(std::int64_t rows, std::uintptr_t pointers, std::size_t pointers_bytes, std::uintptr_t columns,
                                 std::size_t columns_bytes, std::uintptr_t values, std::size_t values_bytes) {
  const std::int64_t count = static_cast<std::int64_t>(values_bytes / sizeof(float));
  const auto* starts = pointers_at(pointers, pointers_bytes, rows, count);
  const auto* places = at<std::int32_t>(columns, columns_bytes, values_bytes, "too few columns");
  if (!bitbudget::packable_outliers(places, at<float>(values, values_bytes, values_bytes, "no values"), count)) return 0;
  return bitbudget::packed_outliers_size(rows, starts);
}

void pack_outliers(std::int64_t rows, std::uintptr_t pointers, std::size_t pointers_bytes, std::uintptr_t columns,
                   std::size_t columns_bytes, std::uintptr_t values, std::size_t values_bytes, std::uintptr_t packed,
                   std::size_t packed_bytes) {
  const std::size_t needed = packed_outliers_size(rows, pointers, pointers_bytes, columns, columns_bytes, values, values_bytes);
  require(needed > 0, "outliers that cannot be packed");
  bitbudget::pack_outliers(rows, reinterpret_cast<const std::int32_t*>(pointers), reinterpret_cast<const std::int32_t*>(columns),
                           reinterpret_cast<const float*>(values), aligned(packed, packed_bytes, needed, "too few bytes for outliers"));
}

// Whether these are bytes that pack_outliers writes for a weight [rows, columns]: nothing outside them and x is going to be read.
bool are_outliers(std::int64_t rows, std::int64_t columns, std::uintptr_t packed, std::size_t bytes) {
  if (rows <= 0 || rows > kLargest || packed == 0 || packed % kAlignment != 0) return false;
  const auto held = static_cast<std::int64_t>(bytes);
  if (held < bitbudget::outliers_layout(rows, 0).bytes) return false;
  const auto* starts = reinterpret_cast<const std::int32_t*>(packed);
  for (std::int64_t row = 0; row < rows; ++row)
    if (starts[row] > starts[row + 1]) return false;
  if (starts[0] != 0) return false;
  const bitbudget::OutliersLayout layout = bitbudget::outliers_layout(rows, starts[rows]);
  if (held != layout.bytes) return false;
  const auto* places = reinterpret_cast<const std::uint16_t*>(packed + static_cast<std::uintptr_t>(layout.columns));
  return std::all_of(places, places + starts[rows], [=](std::uint16_t column) { return column < columns; });
}

void add_outliers(std::uintptr_t x, std::size_t x_bytes, std::int64_t n, std::int64_t stride, std::int64_t columns,
                  std::uintptr_t row_pointers, std::uintptr_t columns_of, std::uintptr_t values, std::int64_t count, std::int64_t rows,
                  std::uintptr_t order, std::size_t order_bytes, std::uintptr_t y, std::size_t y_bytes, std::int64_t out, int threads) {
  require(rows >= 0 && rows < kLargest && count >= 0 && count < kLargest && out >= 0 && out <= kLargest, "no such sparse matrix");
  const float* inputs = at<float>(x, x_bytes, strided(n, stride, columns), "too few bytes of x");
  float* result = at<float>(y, y_bytes, strided(n, out, out), "too few bytes for y");
  const std::int32_t* places = order_at(order, order_bytes, rows, out);
  const auto* pointers = at<std::int32_t>(row_pointers, 1, rows > 0, "no row pointers");
  if (n > 0 && rows > 0)
    bitbudget::add_outliers(inputs, n, stride, pointers, reinterpret_cast<const std::int32_t*>(columns_of),
                            reinterpret_cast<const float*>(values), rows, places, result, out, threads_of(threads));
}

std::size_t floats(std::int64_t count) { return sizeof(float) * static_cast<std::size_t>(count); }

void check_rounding(std::int64_t rows, std::int64_t columns, std::int64_t group, int top) {
  require(rows > 0 && columns > 0 && group > 0 && columns % group == 0 && rows <= kLargest / columns, "no whole groups");
  require(top > 0 && top < 256, "codes have 1 to 8 bits");
}

void nearest(int isa, std::uintptr_t weights, std::size_t weights_bytes, std::int64_t rows, std::int64_t columns, std::int64_t group,
             std::uintptr_t scale, std::uintptr_t zero, std::size_t table_bytes, int top, std::uintptr_t values, std::size_t values_bytes) {
  check_rounding(rows, columns, group, top);
  const std::size_t table = floats(rows * (columns / group));
  bitbudget::nearest(isa_of(isa), at<float>(weights, weights_bytes, floats(rows * columns), "too few weights"), rows, columns, group,
                     at<float>(scale, table_bytes, table, "too few scales"), at<float>(zero, table_bytes, table, "too few zeros"), top,
                     at<float>(values, values_bytes, floats(rows * columns), "too few values"));
}

// Scales, zeros and errors: [tries, rows, groups].
void range_errors(int isa, std::uintptr_t weights, std::size_t weights_bytes, std::int64_t rows, std::int64_t columns, std::int64_t group,
                  std::int64_t tries, std::uintptr_t scale, std::uintptr_t zero, std::size_t table_bytes, int top, std::uintptr_t gram,
                  std::size_t gram_bytes, std::uintptr_t errors, std::size_t errors_bytes) {
  check_rounding(rows, columns, group, top);
  require(group <= kLargest / columns && tries > 0 && tries <= kLargest / (rows * columns), "too large a group, or no tries");
  const std::size_t table = floats(tries * rows * (columns / group));
  bitbudget::range_errors(isa_of(isa), at<float>(weights, weights_bytes, floats(rows * columns), "too few weights"), rows, columns, group,
                          tries, at<float>(scale, table_bytes, table, "too few scales"), at<float>(zero, table_bytes, table, "too few zeros"),
                          top, at<float>(gram, gram_bytes, floats(columns * group), "too few matrices"),
                          at<float>(errors, errors_bytes, table, "too few errors"));
}

std::uint64_t read_array(std::uintptr_t address, std::size_t bytes, int threads, bool side_by_side) {
  const auto* words = at<std::uint64_t>(address, bytes, bytes, "no array");
  return bitbudget::read_all(words, bytes / sizeof(std::uint64_t), threads_of(threads), side_by_side);
}

// Lets the system take back the whole pages of a file that is mapped privately and was never written to; they are read again from
// the file where somebody asks for them.
void forget_pages(std::uintptr_t address, std::size_t bytes) {
#if defined(__linux__)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#else
  (void)address;
  (void)bytes;
#endif
}

}  // namespace

NB_MODULE(_cpu, module) {
  module.doc() = "CPU kernels: addresses and sizes in bytes. Instruction sets and activation formats are numbers of kernels.h.";
  using Released = nb::call_guard<nb::gil_scoped_release>;
  module.def("supported", &supported, "isa"_a);
  module.def("best", [] { return static_cast<int>(bitbudget::best()); });
  module.def("valid", &valid, "isa"_a, "rows"_a, "columns"_a, "group"_a, "bits"_a, "parameters"_a);
  module.def("packed_size", &packed_size);
  module.def("pack", &pack, Released());
  module.def("unpack", &unpack, Released());
  module.def("lookup", &lookup, Released());
  module.def("exact_parameters", &exact_parameters);
  module.def("packed_outliers_size", &packed_outliers_size);
  module.def("pack_outliers", &pack_outliers);
  module.def("are_outliers", &are_outliers);
  nb::class_<Inputs>(module, "Inputs")
      .def(nb::init<>())
      .def_prop_ro("ways", &Inputs::ways)
      .def("dequantize", &Inputs::dequantize, Released());
  nb::class_<Weight>(module, "Weight")
      .def(nb::init<int, std::int64_t, std::int64_t>())
      .def("add", &Weight::add)
      .def("multiply", &Weight::multiply, Released());
  module.def("add_outliers", &add_outliers, Released());
  module.def("nearest", &nearest, Released());
  module.def("range_errors", &range_errors, Released());
  module.def("read", &read_array, Released());
  module.def("forget_pages", &forget_pages);
}
