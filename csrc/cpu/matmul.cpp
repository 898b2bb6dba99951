// GEMM in the manner of BLIS (https://github.com/flame/blis, docs/KernelsHowTo.md): loops over blocks of N, K
// and M that fit the caches, around the microkernel of gemm.h. See block_gemm for the five loops.
#include "activation.h"
#include "gemm.h"
#include "kernels.h"
#include "parallel.h"

namespace minidl::MINIDL_ISA {
namespace {

// Block sizes, in elements: an MC x KC block of A stays in L2 while the KC x NC of B that are packed at a
// time pass under it, a panel after the other; a panel streams from L2 through L1 under every tile of the
// block.
template <class T>
struct Blocks {
  static constexpr int64_t kc = 1536 / sizeof(T), mc = 96, nc = 16 * panel_width<T>;
  static constexpr int64_t pad = 64 / sizeof(T);  // keeps packed rows off each other's cache sets
  static constexpr int64_t a_size = (kc + pad) * (mc + pad), workspace = a_size + kc * nc;  // a thread
};

// Where one way of doing it begins to beat another. Measured; sizes in elements.
constexpr double serial_flops = 1e6;      // about 10 us: below this, waking a thread costs more than it saves
constexpr int64_t dot_rows = 8;           // up to so many rows of A, dot products beat packing a transposed B
constexpr int64_t axpy_size = 1 << 15;    // from this size of B on, a single row of A takes axpy_gemm
constexpr int64_t pack_b_rows = 96;       // from so many rows of A on, packing B pays even untransposed,
constexpr int64_t pack_b_size = 1 << 16;  // unless it is small enough to sit in L2 anyway
constexpr int64_t pack_a_columns = 192;   // from so many columns of B on, packing A pays,
constexpr int64_t pack_a_size = 1 << 15;  // if it is larger than L1

template <class T>
struct Gemm {
  T* c;
  int64_t ldc;
  MatrixView<T> a, b;
  int64_t m, n, k;
  Epilogue<T> epilogue;
};

// The epilogue's activation, on rows of C that have just been written and are still in L1.
template <class T>
void activate(T* c, int64_t ldc, int64_t rows, int64_t cols, Activation activation) {
  if (activation.kind == ActivationKind::none) return;
  if (ldc == cols) {
    cols *= rows;
    rows = 1;
  }
  visit_activation<T>(activation, [&](auto f) {
    for (int64_t i = 0; i < rows; ++i) {
      for_lanes<T>(0, cols, [&](int64_t j, int64_t lanes, auto tag) {
        store_lanes(f.forward(load_lanes(c + i * ldc + j, lanes, tag)), c + i * ldc + j, lanes, tag);
      });
    }
  });
}

// One panel of B under a block of A: all tiles of mc x cols of C.
template <class T>
void macrokernel(const Gemm<T>& g, int64_t i0, int64_t j0, int64_t mc, int64_t cols, int64_t kc, const T* a,
                 int64_t a_row, int64_t a_col, const T* panel, int64_t panel_row, bool accumulate,
                 bool finish) {
  constexpr int64_t w = Vec<T>::width;
  const int vectors = static_cast<int>(ceil_div(cols, w));
  const int last = static_cast<int>(cols - (vectors - 1) * w);
  const T* bias = finish && g.epilogue.bias ? g.epilogue.bias + j0 : nullptr;
  const int64_t tiles = ceil_div(mc, max_rows[vectors]);
  for (int64_t t = 0, i = 0; t < tiles; ++t) {
    const int64_t rows = ceil_div(mc - i, tiles - t);  // even tiles: no thin one is left at the end
    T* c = g.c + (i0 + i) * g.ldc + j0;
    microkernels<T>.of[vectors][rows](kc, a + i * a_row, a_row, a_col, panel, panel_row, c, g.ldc, last,
                                      accumulate, bias);
    if (finish) activate(c, g.ldc, rows, cols, g.epilogue.activation);
    i += rows;
  }
}

// The part [m0, m1) x [n0, n1) of C, on one thread.
template <class T>
void block_gemm(const Gemm<T>& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, T* workspace) {
  using B = Blocks<T>;
  const int64_t m = m1 - m0;
  const bool b_rows_contiguous = g.b.col_stride == 1;
  const bool pack_b = !b_rows_contiguous || (m >= pack_b_rows && g.k * (n1 - n0) > pack_b_size);
  const bool a_rows_contiguous = g.a.col_stride == 1;
  const bool pack_a =
      (a_rows_contiguous || g.a.row_stride == 1) && n1 - n0 >= pack_a_columns && m * g.k >= pack_a_size;
  T* packed_a = workspace;
  T* packed_b = workspace + B::a_size;

  for (int64_t jc = n0; jc < n1; jc += B::nc) {
    const int64_t nc = min_of(B::nc, n1 - jc);
    for (int64_t pc = 0; pc < g.k || pc == 0; pc += B::kc) {
      const int64_t kc = min_of(B::kc, g.k - pc);
      const bool finish = pc + kc >= g.k;
      const T* b = g.b.data + pc * g.b.row_stride + jc * g.b.col_stride;

      for (int64_t ic = m0; ic < m1; ic += B::mc) {
        const int64_t mc = min_of(B::mc, m1 - ic);
        const T* a = g.a.data + ic * g.a.row_stride + pc * g.a.col_stride;
        int64_t a_row = g.a.row_stride, a_col = g.a.col_stride;
        if (pack_a) {
          const int64_t outer = a_rows_contiguous ? mc : kc, inner = a_rows_contiguous ? kc : mc;
          const int64_t stride = round_up(inner, B::pad) + B::pad;
          pack_rows(packed_a, stride, a, a_rows_contiguous ? a_row : a_col, outer, inner);
          a = packed_a;
          (a_rows_contiguous ? a_row : a_col) = stride;
        }

        for (int64_t jr = 0; jr < nc; jr += panel_width<T>) {
          const int64_t cols = min_of(panel_width<T>, nc - jr);
          const T* panel = b + jr * g.b.col_stride;
          int64_t panel_row = g.b.row_stride;
          if (pack_b || cols % Vec<T>::width != 0) {  // a ragged panel would be read past its end
            T* packed = packed_b + jr * kc;
            if (ic == m0) pack_panel(packed, panel, g.b.row_stride, g.b.col_stride, kc, cols);
            panel = packed;
            panel_row = round_up(cols, Vec<T>::width);
          }
          macrokernel(g, ic, jc + jr, mc, cols, kc, a, a_row, a_col, panel, panel_row, pc > 0, finish);
        }
      }
    }
  }
}

// C = A B for few rows m, where both the rows of A and the columns of B are contiguous: dot products, so that
// B is read once and not packed. c_row and c_col let a matrix times a column be computed as its transpose.
template <class T>
void dot_gemm(const Gemm<T>& g, int64_t c_row, int64_t c_col, int64_t n0, int64_t n1, bool bias_of_row) {
  constexpr int64_t block = 4;
  for (int64_t j = n0; j < n1; j += block) {
    const int64_t columns = min_of(block, n1 - j);
    const T* b[block];
    for (int64_t q = 0; q < block; ++q) b[q] = g.b.data + (j + min_of(q, columns - 1)) * g.b.col_stride;
    for (int64_t i = 0; i < g.m; ++i) {
      const T* a = g.a.data + i * g.a.row_stride;
      Vec<T> acc[block];
      for_lanes<T>(0, g.k, [&](int64_t p, int64_t lanes, auto tag) {
        const Vec<T> av = load_lanes(a + p, lanes, tag);
        MINIDL_UNROLL for (int64_t q = 0; q < block; ++q) {
          acc[q] = fmadd(av, load_lanes(b[q] + p, lanes, tag), acc[q]);
        }
      });
      for (int64_t q = 0; q < columns; ++q) {
        const T bias = g.epilogue.bias ? g.epilogue.bias[bias_of_row ? i : j + q] : T(0);
        g.c[i * c_row + (j + q) * c_col] = reduce_add(acc[q]) + bias;
      }
    }
  }
}

// C = A B for a single row A and a large B whose rows are contiguous: a sum of scaled rows of B, which is
// read once, in order. A tile of the microkernel would walk down B instead, a few lanes wide, from page to
// page.
template <class T>
void axpy_gemm(const Gemm<T>& g, int64_t n0, int64_t n1) {
  constexpr int64_t together = 4, block = 1024;  // rows of B at a time; columns whose part of C stays in L1
  const auto add_rows = [&](int64_t p, int64_t j0, int64_t j1, auto rows) {
    Vec<T> scale[rows.value];
    unroll<rows.value>([&](auto q) { scale[q] = g.a.data[(p + q) * g.a.col_stride]; });
    for_lanes<T>(j0, j1, [&](int64_t j, int64_t lanes, auto tag) {
      const T* b = g.b.data + p * g.b.row_stride + j;
      Vec<T> sum = p == 0 ? Vec<T>() : load_lanes(g.c + j, lanes, tag);
      unroll<rows.value>(
          [&](auto q) { sum = fmadd(scale[q], load_lanes(b + q * g.b.row_stride, lanes, tag), sum); });
      store_lanes(sum, g.c + j, lanes, tag);
    });
  };
  for (int64_t j = n0; j < n1; j += block) {
    const int64_t end = min_of(j + block, n1);
    int64_t p = 0;
    for (; p + together <= g.k; p += together) add_rows(p, j, end, Index<together>{});
    for (; p < g.k; ++p) add_rows(p, j, end, Index<1>{});
    for (int64_t q = j; g.epilogue.bias && q < end; ++q) g.c[q] += g.epilogue.bias[q];
    activate(g.c + j, end - j, 1, end - j, g.epilogue.activation);
  }
}

template <class T>
Gemm<T> transposed(const Gemm<T>& g) {
  Gemm<T> t = g;
  t.a = {g.b.data, g.b.col_stride, g.b.row_stride};
  t.b = {g.a.data, g.a.col_stride, g.a.row_stride};
  t.m = g.n;
  t.n = g.m;
  return t;
}

template <class T>
bool is_dot_gemm(const Gemm<T>& g) {
  return g.m <= dot_rows && g.a.col_stride == 1 && g.b.row_stride == 1 && g.b.col_stride != 1;
}

// One product, split over at most `parts` threads.
template <class T>
void split_gemm(const Gemm<T>& g, int64_t parts, T* workspace) {
  if (g.n == 1 && g.ldc == 1 && is_dot_gemm(transposed(g))) {
    parallel_for(g.m, ceil_div(g.m, parts), [&](int64_t begin, int64_t end) {
      dot_gemm(transposed(g), 1, 1, begin, end, true);
      activate(g.c + begin, end - begin, 1, end - begin, g.epilogue.activation);
    });
    return;
  }
  if (is_dot_gemm(g)) {
    parallel_for(g.n, ceil_div(g.n, parts), [&](int64_t begin, int64_t end) {
      dot_gemm(g, g.ldc, 1, begin, end, false);
      activate(g.c + begin, g.ldc, g.m, end - begin, g.epilogue.activation);
    });
    return;
  }
  if (g.m == 1 && g.b.col_stride == 1 && g.k * g.n >= axpy_size) {
    parallel_for(g.n, ceil_div(g.n, parts), [&](int64_t begin, int64_t end) { axpy_gemm(g, begin, end); });
    return;
  }
  // Split the dimension that has more whole tiles a part, so that no part is left with a fraction of one.
  const int64_t unit_n = panel_width<T>, unit_m = max_rows[max_vectors];
  const bool by_columns = ceil_div(g.n, unit_n) >= parts;
  const int64_t unit = by_columns ? unit_n : unit_m;
  const int64_t units = ceil_div(by_columns ? g.n : g.m, unit);
  const int64_t used = min_of(parts, units);
  parallel_for(used, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t from = units * part / used * unit, to = units * (part + 1) / used * unit;
      T* scratch = workspace + part * Blocks<T>::workspace;
      if (by_columns) {
        block_gemm(g, 0, g.m, from, min_of(to, g.n), scratch);
      } else {
        block_gemm(g, from, min_of(to, g.m), 0, g.n, scratch);
      }
    }
  });
}

// dz = dy * f'(y) and the sums of its columns over m rows, for `vectors` registers of columns of which the
// last is ragged. Pairwise: the error of the sums grows with log m, not with m.
template <class T, int vectors, class F>
struct EpilogueColumns {
  F f;
  T* dz;
  const T *dy, *y;
  int64_t n, lanes;  // of the last register

  MINIDL_INLINE Vec<T> element(int64_t at, int64_t count) const {
    const Vec<T> g = Vec<T>::load(dy + at, static_cast<int>(count));
    if (!dz) return g;
    const Vec<T> d = f.backward(g, Vec<T>::load(y + at, static_cast<int>(count)));
    d.store(dz + at, static_cast<int>(count));
    return d;
  }
  void sum(int64_t begin, int64_t end, Vec<T> (&total)[vectors]) const {
    constexpr int64_t serial = 64;
    if (end - begin > serial) {
      Vec<T> other[vectors];
      const int64_t middle = begin + round_up((end - begin) / 2, serial);
      sum(begin, middle, total);
      sum(middle, end, other);
      unroll<vectors>([&](auto v) { total[v] = total[v] + other[v]; });
      return;
    }
    unroll<vectors>([&](auto v) { total[v] = Vec<T>(); });
    for (int64_t i = begin; i < end; ++i) {
      unroll<vectors>([&](auto v) {
        constexpr int64_t w = Vec<T>::width;
        total[v] = total[v] + element(i * n + v * w, v == vectors - 1 ? lanes : w);
      });
    }
  }
};

template <class T, int vectors, class F>
void epilogue_columns(F f, T* dz, T* db, const T* dy, const T* y, int64_t m, int64_t n, int64_t j,
                      int64_t cols) {
  constexpr int64_t w = Vec<T>::width;
  const int64_t lanes = cols - (vectors - 1) * w;
  const EpilogueColumns<T, vectors, F> columns{f, dz ? dz + j : nullptr, dy + j, y + j, n, lanes};
  Vec<T> total[vectors];
  columns.sum(0, m, total);
  if (!db) return;
  for (int v = 0; v < vectors; ++v) {
    total[v].store(db + j + v * w, static_cast<int>(v == vectors - 1 ? lanes : w));
  }
}

}  // namespace

template <class T>
void gemm(T* c, int64_t ldc, int64_t c_batch_stride, MatrixView<T> a, MatrixView<T> b, int64_t batch,
          int64_t m, int64_t n, int64_t k, Epilogue<T> epilogue, Context ctx) {
  if (batch == 0 || m == 0 || n == 0) return;
  constexpr int64_t per_thread = Blocks<T>::workspace;
  const auto product = [&](int64_t s) {
    return Gemm<T>{c + s * c_batch_stride,
                   ldc,
                   {a.data + s * a.batch_stride, a.row_stride, a.col_stride},
                   {b.data + s * b.batch_stride, b.row_stride, b.col_stride},
                   m,
                   n,
                   k,
                   epilogue};
  };
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const int64_t threads = flops * static_cast<double>(batch) < serial_flops ? 1 : ctx.threads;
  T* workspace = static_cast<T*>(ctx.workspace(static_cast<size_t>(threads * per_thread) * sizeof(T)));
  if (batch == 1) return split_gemm(product(0), threads, workspace);
  const int64_t used = min_of(threads, batch);
  parallel_for(used, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t s = batch * part / used; s < batch * (part + 1) / used; ++s) {
        split_gemm(product(s), 1, workspace + part * per_thread);
      }
    }
  });
}

template <class T>
void epilogue_backward(T* dz, T* db, const T* dy, const T* y, int64_t m, int64_t n, Activation activation,
                       Context) {
  constexpr int64_t w = Vec<T>::width, together = 4 * w, grain = 32768;  // elements that are worth a thread
  visit_activation<T>(activation, [&](auto f) {
    parallel_for(ceil_div(n, together), ceil_div(grain, together * max_of(m, 1)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t j = begin * together; j < min_of(end * together, n);) {
                     const int64_t left = n - j;
                     if (left >= together) {
                       epilogue_columns<T, 4>(f, dz, db, dy, y, m, n, j, together);
                       j += together;
                     } else {
                       epilogue_columns<T, 1>(f, dz, db, dy, y, m, n, j, min_of(left, w));
                       j += w;
                     }
                   }
                 });
  });
}

template void gemm(float*, int64_t, int64_t, MatrixView<float>, MatrixView<float>, int64_t, int64_t, int64_t,
                   int64_t, Epilogue<float>, Context);
template void gemm(double*, int64_t, int64_t, MatrixView<double>, MatrixView<double>, int64_t, int64_t,
                   int64_t, int64_t, Epilogue<double>, Context);
template void epilogue_backward(float*, float*, const float*, const float*, int64_t, int64_t, Activation,
                                Context);
template void epilogue_backward(double*, double*, const double*, const double*, int64_t, int64_t, Activation,
                                Context);

}  // namespace minidl::MINIDL_ISA
