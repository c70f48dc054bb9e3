// AMX: many streams on a machine that has tile registers, beside AVX-512 for everything else. Same integers, same order of fp32
// operations, so the same results to the bit as isa_avx512_vnni.cpp.
//
// A line of packed codes is a row of the tile operand that holds four neighbouring k of 16 outputs, so unpacked cells are operands as they
// are; only the inputs have to be laid out anew, one row of k per stream.

#include "avx512.h"

namespace bitbudget {
namespace {

constexpr int kPanel = 2;               // tiles of weights at once: 2 × 2 sums, 2 operands of each kind are the 8 tile registers
constexpr std::int64_t kAtOnce = 32;    // streams
constexpr std::int64_t kDepth = 64;     // columns of one multiplication
constexpr std::int64_t kCachedRows = 1 << 20;  // bytes of inputs that are meant to stay in the second-level cache, 2 MiB on these machines
constexpr std::int64_t kSums = kAtOnce * kPanel * kTileRows;

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Inputs of some tokens, [groups, streams, padded]; streams are filled up with zeros to a multiple of kAtOnce.
struct Rows {
  std::int64_t first_token, tokens, streams;
  std::int8_t* values;
};

void lay_out(const Product& product, std::int64_t first_block, std::int64_t last_block, Rows& rows) {
  const InputsLayout& inputs = product.inputs;
  const std::int64_t padded = inputs.groups.padded, group_bytes = rows.streams * padded;
  std::memset(rows.values, 0, static_cast<std::size_t>(inputs.groups.count * group_bytes));
  for (std::int64_t group = 0; group < inputs.groups.count; ++group)
    for (std::int64_t index = first_block; index < last_block; ++index) {
      const TokenBlock block = inputs.block(index);
      const std::int64_t streams = block.count * inputs.streams;
      const std::int8_t* from = product.values + inputs.values(group, block.first);
      std::int8_t* to = rows.values + group * group_bytes + (block.first - rows.first_token) * inputs.streams * padded;
      for (std::int64_t stream = 0; stream < streams; ++stream)
        for (std::int64_t column = 0; column < padded; column += 4)
          std::memcpy(to + stream * padded + column, from + column * streams + stream * 4, 4);
    }
}

// Up to 16 streams x [16, padded] against two tiles of codes: sums [2 tiles, 16 streams, 16 rows].
void dot_half(const std::int8_t* x, std::int64_t padded, const std::uint8_t* const* lines, std::int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  const auto stride = static_cast<std::size_t>(padded);
  for (std::int64_t column = 0; column < padded; column += kDepth) {
    _tile_loadd(4, x + column, stride);
    _tile_loadd(6, lines[0] + column * kTileRows, kLineBytes);
    _tile_loadd(7, lines[1] + column * kTileRows, kLineBytes);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
  }
  _tile_stored(0, sums, kLineBytes);
  _tile_stored(1, sums + 256, kLineBytes);
}

// kAtOnce streams x [kAtOnce, padded] against two tiles of codes: sums [2 halves of the streams, 2 tiles, 16 streams, 16 rows].
void dot_tiles(const std::int8_t* x, std::int64_t padded, const std::uint8_t* const* lines, std::int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto stride = static_cast<std::size_t>(padded);
  for (std::int64_t column = 0; column < padded; column += kDepth) {
    _tile_loadd(4, x + column, stride);
    _tile_loadd(5, x + column + 16 * padded, stride);
    _tile_loadd(6, lines[0] + column * kTileRows, kLineBytes);
    _tile_loadd(7, lines[1] + column * kTileRows, kLineBytes);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums, kLineBytes);
  _tile_stored(1, sums + 256, kLineBytes);
  _tile_stored(2, sums + 512, kLineBytes);
  _tile_stored(3, sums + 768, kLineBytes);
}

// Adds what dot_tiles found to y [tokens, kPanel, 16].
template <bool kResidual>
void add_sums(const Product& product, std::int64_t tile, std::int64_t group, const std::int32_t* sums, std::int64_t first_token,
              std::int64_t tokens, float* y) {
  using V = Avx512Vnni;
  constexpr int kPerToken = kResidual ? 2 : 1;
  const WeightsLayout& layout = product.weights;
  const float* scales = product.scales + group * product.inputs.n + first_token;
  const float* input_sums = product.sums + group * product.inputs.n + first_token;
  for (int t = 0; t < kPanel; ++t) {
    V::Floats scale, zero;
    load_parameters<V>(layout, product.packed + smaller(tile + t, layout.tiles - 1) * layout.tile_bytes + group * layout.cell_bytes, scale,
                       zero);
    for (std::int64_t token = 0; token < tokens; ++token) {
      const std::int64_t stream = token * kPerToken;
      const std::int32_t* row = sums + stream / 16 * 512 + t * 256 + stream % 16 * kTileRows;
      V::Floats total;
      if constexpr (kResidual)
        total = with_residual<V>((V::Sums)_mm512_load_si512(row), (V::Sums)_mm512_load_si512(row + kTileRows));
      else
        total = V::floats((V::Sums)_mm512_load_si512(row));
      float* place = y + (token * kPanel + t) * kTileRows;
      V::store_fp32(place, add_cell<V>(V::load_fp32(place), total, scale, zero, scales[token], input_sums[token]));
    }
  }
}

struct AmxScratch {  // of one thread
  std::uint8_t* codes;  // [kPanel, padded, 16]
  std::int32_t* sums;   // [kSums]
  float* y;             // [tokens, kPanel, 16]
};

template <int kBits, bool kResidual>
void multiply_panel_amx(const Product& product, std::int64_t tile, const Rows& rows, const AmxScratch& scratch) {
  constexpr std::int64_t kTokens = kAtOnce / (kResidual ? 2 : 1);
  const std::int64_t padded = product.inputs.groups.padded;
  std::memset(scratch.y, 0, static_cast<std::size_t>(rows.tokens * kPanel * kTileRows) * sizeof(float));
  for (std::int64_t group = 0; group < product.inputs.groups.count; ++group) {
    const std::uint8_t* lines[kPanel];
    unpack_tiles<Avx512Vnni, kBits>(product, tile, kPanel, group, scratch.codes, lines);
    const std::int8_t* x = rows.values + group * rows.streams * padded;
    for (std::int64_t token = 0; token < rows.tokens; token += kTokens, x += kAtOnce * padded) {
      const std::int64_t tokens = smaller(kTokens, rows.tokens - token);
      (2 * tokens > kTokens ? dot_tiles : dot_half)(x, padded, lines, scratch.sums);
      add_sums<kResidual>(product, tile, group, scratch.sums, rows.first_token + token, tokens, scratch.y + token * kPanel * kTileRows);
    }
  }
  write_panel<Avx512Vnni>(product, tile, kPanel, rows.first_token, rows.tokens, scratch.y);
}

// Panels [first, last) of one thread, for tokens that stay in the cache, then the next such tokens. `own`: bytes_of() bytes.
template <int kBits, bool kResidual>
void multiply_panels_amx(const Product& product, std::int64_t first, std::int64_t last, std::int64_t blocks, std::int64_t streams,
                         std::uint8_t* own) {
  const InputsLayout& inputs = product.inputs;
  const AmxScratch scratch{own + kSums * 4, reinterpret_cast<std::int32_t*>(own),
                           reinterpret_cast<float*>(own + kSums * 4 + kPanel * inputs.groups.padded * kTileRows)};
  auto* values = reinterpret_cast<std::int8_t*>(scratch.y + streams * kPanel * kTileRows);
  static const TileShapes shapes;  // GCC 12 says of the instruction that it reads 8 bytes, and leaves out stores of the others
  _tile_loadconfig(&shapes);
  for (std::int64_t block = 0; block < inputs.blocks; block += blocks) {
    const std::int64_t end = smaller(block + blocks, inputs.blocks);
    const TokenBlock back = inputs.block(end - 1);
    Rows rows{inputs.block(block).first, 0, 0, values};
    rows.tokens = back.first + back.count - rows.first_token;
    rows.streams = ceil_div(rows.tokens * inputs.streams, kAtOnce) * kAtOnce;
    lay_out(product, block, end, rows);
    for (std::int64_t panel = first; panel < last; ++panel) multiply_panel_amx<kBits, kResidual>(product, panel * kPanel, rows, scratch);
  }
  _tile_release();
}

template <int kBits, bool kResidual>
void multiply_amx(const Product& product) {
  const InputsLayout& inputs = product.inputs;
  const std::int64_t widest = Avx512Vnni::kStreams, row_bytes = inputs.groups.count * inputs.groups.padded;
  const std::int64_t rounds = ceil_div(inputs.blocks, kCachedRows / (row_bytes * widest) + 1);
  const std::int64_t blocks = ceil_div(inputs.blocks, rounds);
  const std::int64_t streams = ceil_div(blocks * widest, kAtOnce) * kAtOnce;
  const std::int64_t bytes = kSums * 4 + kPanel * inputs.groups.padded * kTileRows + streams * (kPanel * kTileRows * 4 + row_bytes);
  const std::int64_t panels = ceil_div(product.weights.tiles, kPanel);
  const int threads = static_cast<int>(smaller(product.threads, panels));
  const Memory memory(threads * bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int thread = 0; thread < threads; ++thread)
    multiply_panels_amx<kBits, kResidual>(product, panels * thread / threads, panels * (thread + 1) / threads, blocks, streams,
                                          memory.data() + thread * bytes);
}

template <int kBits>
void multiply_amx_bits(const Product& product) {
  if (product.inputs.streams == 2)
    multiply_amx<kBits, true>(product);
  else
    multiply_amx<kBits, false>(product);
}

}  // namespace

bool worth_tiles(const Product& product) {
  // Codes that have to be unpacked anyway are multiplied sooner; those of 8 bits are multiplied in registers while few streams do it.
  const std::int64_t least = product.weights.bits == 8 ? 20 : 8;
  return product.inputs.n * product.inputs.streams >= least && product.inputs.groups.padded % kDepth == 0;
}

void multiply_tiles(const Product& product) {
  switch (product.weights.bits) {
    case 2:
      return multiply_amx_bits<2>(product);
    case 3:
      return multiply_amx_bits<3>(product);
    case 4:
      return multiply_amx_bits<4>(product);
    case 5:
      return multiply_amx_bits<5>(product);
    case 6:
      return multiply_amx_bits<6>(product);
    case 8:
      return multiply_amx_bits<8>(product);
  }
}

}  // namespace bitbudget
