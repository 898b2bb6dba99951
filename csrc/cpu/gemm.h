// The parts of the GEMM that know the register file: the microkernel and the packing that feeds it.
//
// A microkernel computes a tile of C, `rows` x (vectors * width), over kc steps of k: at each step it loads
// `vectors` registers of B, broadcasts one element of A a row, and does rows * vectors fused multiply-adds.
//
//            B panel: kc x (vectors * width), rows b_stride apart
//            | b0 | b1 | b2 | b3 |
//    a0 ---> | c00| c01| c02| c03|      accumulators: the tile's whole life is in registers
//    a1 ---> | c10| ...
//
// A is read where it lies, at any strides; B comes as panels in which a row is contiguous.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

// Tile sizes: enough independent accumulators to hide the latency of an FMA (4 cycles on 2 units: 8), few
// enough for the registers, and wide, because a row costs a broadcast but a vector of B is loaded once for
// all rows.
#if defined(MINIDL_ISA_avx512)
constexpr int max_vectors = 4, max_rows[] = {0, 14, 12, 8, 6};  // 32 registers: 24 accumulators + B + A
#elif defined(MINIDL_ISA_avx2)
constexpr int max_vectors = 2, max_rows[] = {0, 12, 6};  // 16 registers: 12 accumulators + B + A
#elif defined(MINIDL_ISA_neon)
constexpr int max_vectors = 4, max_rows[] = {0, 14, 12, 8, 6};  // 32 registers
#else
constexpr int max_vectors = 4, max_rows[] = {0, 4, 4, 3, 2};
#endif
constexpr int widest = max_rows[1];

template <class T>
constexpr int64_t panel_width = max_vectors * Vec<T>::width;

// C (+)= A B on one tile. The last vector of a row has `last` lanes inside C. accumulate == false never reads
// C.
template <class T>
using Microkernel = void (*)(int64_t kc, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row,
                             T* c, int64_t ldc, int last, bool accumulate, bool prefetch_c, const T* bias);

template <class T, int rows, int vectors>
void microkernel(int64_t kc, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, T* c,
                 int64_t ldc, int last, bool accumulate, bool prefetch_c, const T* bias) {
  static_assert(rows * vectors <= 28, "accumulators, B and A must fit 32 registers");
  constexpr int w = Vec<T>::width;
  // C is needed in kc steps, B in a few: neither should then be waited for.
  if (prefetch_c) {
    unroll<rows>(
        [&](auto i) { unroll<vectors>([&](auto j) { __builtin_prefetch(c + i * ldc + j * w, 1); }); });
  }
  constexpr int64_t ahead = 4;

  Vec<T> acc[rows][vectors];
  unroll<rows>([&](auto i) { unroll<vectors>([&](auto j) { acc[i][j] = Vec<T>(); }); });
  for (int64_t p = 0; p < kc; ++p, a += a_col, b += b_row) {
    Vec<T> bv[vectors];
    unroll<vectors>([&](auto j) { bv[j] = Vec<T>::load(b + j * w); });
    unroll<vectors>([&](auto j) { __builtin_prefetch(b + ahead * b_row + j * w); });
    unroll<rows>([&](auto i) {
      const Vec<T> av(a[i * a_row]);
      unroll<vectors>([&](auto j) { acc[i][j] = fmadd(av, bv[j], acc[i][j]); });
    });
  }

  // Only the last vector of a row can be ragged; masking it always costs less than asking.
  unroll<vectors>([&](auto j) {
    const auto load = [&](const T* p) { return j == vectors - 1 ? Vec<T>::load(p, last) : Vec<T>::load(p); };
    if (accumulate) unroll<rows>([&](auto i) { acc[i][j] = acc[i][j] + load(c + i * ldc + j * w); });
    if (bias) {
      const Vec<T> add = load(bias + j * w);
      unroll<rows>([&](auto i) { acc[i][j] = acc[i][j] + add; });
    }
    unroll<rows>([&](auto i) {
      T* out = c + i * ldc + j * w;
      if constexpr (j.value == vectors - 1) {
        acc[i][j].store(out, last);
      } else {
        acc[i][j].store(out);
      }
    });
  });
}

// microkernels<T>[vectors][rows]: an instance for every tile that an edge of C can leave over.
template <class T>
struct MicrokernelTable {
  Microkernel<T> of[max_vectors + 1][widest + 1] = {};

  template <int vectors, int rows = max_rows[vectors]>
  constexpr void fill() {
    of[vectors][rows] = microkernel<T, rows, vectors>;
    if constexpr (rows > 1) {
      fill<vectors, rows - 1>();
    } else if constexpr (vectors > 1) {
      fill<vectors - 1>();
    }
  }
  constexpr MicrokernelTable() { fill<max_vectors>(); }
};
template <class T>
constexpr MicrokernelTable<T> microkernels{};

// Rows [0, m) cut into tiles of at most `most` rows, as even as can be: no thin one is left at the end.
struct Tiles {
  int64_t m, count;
  Tiles(int64_t m_, int64_t most) : m(m_), count(ceil_div(m_, most)) {}
  int64_t begin(int64_t t) const { return m * t / count; }
};

// A block of A as the macrokernel reads it: in place, or packed tile by tile, each kc runs of its rows.
template <class T>
struct BlockA {
  const T* data;
  int64_t row_stride, col_stride;
  bool packed;
};

// Panels of B: from a row, and from a panel, to the next.
template <class T>
struct PanelsB {
  const T* data;
  int64_t row_stride, panel_stride;
  bool packed;
};

constexpr int64_t prefetch_rows =
    8;  // how far packing looks ahead, where rows lie too far apart for hardware to guess

// m x kc of an A whose columns are contiguous -> tiles, as BlockA says.
template <class T>
void pack_a(T* dst, const T* a, int64_t col_stride, int64_t m, int64_t kc) {
  constexpr int64_t together = 16;  // tiles: their runs of a column share cache lines
  const Tiles tiles(m, max_rows[max_vectors]);
  for (int64_t t0 = 0; t0 < tiles.count; t0 += together) {
    const int64_t group = min_of(together, tiles.count - t0);
    int64_t begin[together + 1];
    for (int64_t t = 0; t <= group; ++t) begin[t] = tiles.begin(t0 + t);
    for (int64_t p = 0; p < kc; ++p) {
      __builtin_prefetch(a + (p + prefetch_rows) * col_stride + begin[0]);
      for (int64_t t = 0; t < group; ++t) {
        const int rows = static_cast<int>(begin[t + 1] - begin[t]);
        T* out = dst + begin[t] * kc + p * rows;
        if constexpr (max_rows[max_vectors] <= Vec<T>::width) {
          Vec<T>::load(a + p * col_stride + begin[t], rows).store(out, rows);
        } else {
          for (int i = 0; i < rows; ++i) out[i] = a[p * col_stride + begin[t] + i];
        }
      }
    }
  }
}

// kc x cols of B -> panels one after another, each kc rows of its width rounded up to whole vectors, the
// padding zero. Only the last panel may be narrower than panel_width.
template <class T>
void pack_b(T* dst, const T* b, int64_t row_stride, int64_t col_stride, int64_t kc, int64_t cols) {
  constexpr int64_t w = Vec<T>::width, line = 64 / sizeof(T);
  const auto width = [&](int64_t panel) { return min_of(panel_width<T>, cols - panel); };
  if (col_stride == 1) {  // row by row across all panels: long runs
    for (int64_t p = 0; p < kc; ++p) {
      const T* row = b + p * row_stride;
      for (int64_t j = 0; j < cols; j += line) __builtin_prefetch(row + prefetch_rows * row_stride + j);
      for (int64_t panel = 0; panel < cols; panel += panel_width<T>) {
        T* out = dst + panel * kc + p * round_up(width(panel), w);
        for_lanes<T>(0, width(panel), [&](int64_t j, int64_t lanes, auto tag) {
          load_lanes(row + panel + j, lanes, tag).store(out + j);
        });
      }
    }
  } else if (row_stride == 1) {  // torch's (out, in) weights: transposed in registers, a square at a time
    for (int64_t j = 0; j < cols; j += w) {
      const int64_t columns = min_of(w, cols - j), panel = j / panel_width<T> * panel_width<T>;
      const int64_t padded = round_up(width(panel), w);
      T* out = dst + panel * kc + j - panel;
      for_lanes<T>(0, kc, [&](int64_t p, int64_t lanes, auto tag) {
        Vec<T> square[w];
        for (int64_t i = 0; i < columns; ++i) {
          square[i] = load_lanes(b + (j + i) * col_stride + p, lanes, tag);
        }
        transpose(square);
        for (int64_t i = 0; i < lanes; ++i) square[i].store(out + (p + i) * padded);
      });
    }
  } else {
    for (int64_t panel = 0; panel < cols; panel += panel_width<T>) {
      const int64_t padded = round_up(width(panel), w);
      for (int64_t p = 0; p < kc; ++p) {
        for (int64_t j = 0; j < padded; ++j) {
          const bool inside = j < width(panel);
          dst[panel * kc + p * padded + j] = inside ? b[p * row_stride + (panel + j) * col_stride] : T(0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
