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
                             T* c, int64_t ldc, int last, bool accumulate, const T* bias);

template <class T, int rows, int vectors>
void microkernel(int64_t kc, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, T* c,
                 int64_t ldc, int last, bool accumulate, const T* bias) {
  static_assert(rows * vectors <= 28, "accumulators, B and A must fit 32 registers");
  constexpr int w = Vec<T>::width;
  // C is needed in kc steps, B in a few: neither should then be waited for.
  unroll<rows>([&](auto i) { unroll<vectors>([&](auto j) { __builtin_prefetch(c + i * ldc + j * w, 1); }); });
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

// A kc x cols block of B -> dst[kc][padded], padded = cols rounded up to whole vectors, the padding zero.
template <class T>
void pack_panel(T* dst, const T* b, int64_t row_stride, int64_t col_stride, int64_t kc, int64_t cols) {
  constexpr int64_t w = Vec<T>::width;
  const int64_t padded = round_up(cols, w);
  if (col_stride == 1) {
    for (int64_t p = 0; p < kc; ++p) {
      for_lanes<T>(0, cols, [&](int64_t j, int64_t lanes, auto tag) {
        load_lanes(b + p * row_stride + j, lanes, tag).store(dst + p * padded + j);
      });
    }
  } else if (row_stride == 1) {  // torch's (out, in) weights: transposed in registers, a square at a time
    for (int64_t j = 0; j < cols; j += w) {
      const int64_t columns = min_of(w, cols - j);
      for_lanes<T>(0, kc, [&](int64_t p, int64_t lanes, auto tag) {
        Vec<T> square[w];
        for (int64_t i = 0; i < columns; ++i) {
          square[i] = load_lanes(b + (j + i) * col_stride + p, lanes, tag);
        }
        transpose(square);
        for (int64_t i = 0; i < lanes; ++i) square[i].store(dst + (p + i) * padded + j);
      });
    }
  } else {
    for (int64_t p = 0; p < kc; ++p) {
      for (int64_t j = 0; j < padded; ++j) {
        dst[p * padded + j] = j < cols ? b[p * row_stride + j * col_stride] : T(0);
      }
    }
  }
}

// A dense copy of `outer` runs of `inner` contiguous elements: what A is read from when its own rows are so
// far apart that they share cache sets or miss the TLB.
template <class T>
void pack_rows(T* dst, int64_t dst_stride, const T* src, int64_t src_stride, int64_t outer, int64_t inner) {
  for (int64_t i = 0; i < outer; ++i) {
    for_lanes<T>(0, inner, [&](int64_t j, int64_t lanes, auto tag) {
      store_lanes(load_lanes(src + i * src_stride + j, lanes, tag), dst + i * dst_stride + j, lanes, tag);
    });
  }
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
