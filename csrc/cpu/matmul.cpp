// GEMM in the manner of BLIS (https://github.com/flame/blis, docs/KernelsHowTo.md): loops over blocks of N, K
// and M that fit the caches, around the microkernel of gemm.h. See block_gemm for the five loops.
#include "activation.h"
#include "gemm.h"
#include "kernels.h"
#include "parallel.h"

namespace minidl::MINIDL_ISA {
namespace {

// Block sizes, in elements. A kc x nc block of B fills half of L2 and stays there while all of A passes under
// it, a tile of rows after the other; mc bounds the A that is packed at a time. kc is long because each pass
// over k reads and writes C once more, and fixed, unlike nc, because it decides how sums are rounded.
template <class T>
struct Blocks {
  static constexpr int64_t kc = 2048 / sizeof(T), mc = 1024, a_size = kc * mc;
  int64_t b_size;
  explicit Blocks(const Context& ctx)
      : b_size(max_of(ctx.l2_bytes / 2 / static_cast<int64_t>(sizeof(T)), kc * panel_width<T>)) {}
  int64_t nc(int64_t k) const { return b_size / (k * panel_width<T>)*panel_width<T>; }
  int64_t workspace() const { return a_size + b_size; }  // a thread
};

// Where one way of doing it begins to beat another. Measured; sizes in elements.
constexpr int64_t tiny_size = 512;      // multiply-adds: below this, to choose takes longer than to multiply
constexpr double serial_flops = 2e6;    // about 20 us: below this, waking a thread costs more than it saves
constexpr int64_t dot_rows = 8;         // up to so many rows of A, dot products beat packing a transposed B
constexpr int64_t axpy_size = 1 << 15;  // from this size of B on, a single row of A takes axpy_gemm
constexpr int64_t pack_b_rows = 96;     // from so many rows of A on, packing B pays even untransposed,
constexpr int64_t pack_b_rows_4k = 24;  // earlier, where B's rows are 4 KB apart and share their cache sets,
constexpr int64_t pack_b_size = 1 << 16;  // unless B is small enough to sit in L2 anyway;
constexpr int64_t pack_b_rows_any = 512;  // from so many on, packing any B costs nothing
constexpr int64_t pack_a_columns = 192;   // from so many columns of B on, packing a transposed A pays,
constexpr int64_t pack_a_size = 1 << 15;  // if it is larger than L1

template <class T>
struct Gemm {
  T* c;
  int64_t ldc;
  MatrixView<T> a, b;
  int64_t m, n, k;
  Epilogue<T> epilogue;
};

// All tiles of m x cols of C from (i0, j0) on.
template <class T>
void macrokernel(const Gemm<T>& g, int64_t i0, int64_t m, int64_t j0, int64_t cols, int64_t kc, BlockA<T> a,
                 PanelsB<T> b, bool accumulate, bool prefetch_c, bool finish) {
  constexpr int64_t w = Vec<T>::width;
  const int64_t width = min_of(cols, panel_width<T>);
  const int vectors = static_cast<int>(ceil_div(width, w));
  const int last = static_cast<int>(width - (vectors - 1) * w);
  const Tiles tiles(m, max_rows[a.packed ? max_vectors : vectors]);
  const auto tile = [&](int64_t t, int64_t j) {
    const int64_t i = tiles.begin(t), rows = tiles.begin(t + 1) - i;
    const T* a_tile = a.data + i * (a.packed ? kc : a.row_stride);
    const int64_t a_row = a.packed ? 1 : a.row_stride, a_col = a.packed ? rows : a.col_stride;
    T* c = g.c + (i0 + i) * g.ldc + j0 + j;
    const T* bias = finish && g.epilogue.bias ? g.epilogue.bias + j0 + j : nullptr;
    const T* panel = b.data + j / panel_width<T> * b.panel_stride;
    microkernels<T>.of[vectors][rows](kc, a_tile, a_row, a_col, panel, b.row_stride, c, g.ldc, last,
                                      accumulate, prefetch_c, bias);
    if (finish) activate(c, g.ldc, rows, width, g.epilogue.activation);
  };
  // Packed panels stream well from L2, so that a tile's rows of A pass over all of them while in L1. In
  // place, where each row is on a page of its own, a panel is better used by several tiles at once.
  const int64_t together = b.packed ? 1 : 16;
  for (int64_t t0 = 0; t0 < tiles.count; t0 += together) {
    const int64_t t1 = min_of(t0 + together, tiles.count);
    for (int64_t j = 0; j < cols; j += panel_width<T>) {
      for (int64_t t = t0; t < t1; ++t) tile(t, j);
    }
  }
}

template <class T>
bool packs_b(const Gemm<T>& g, int64_t m, int64_t n) {
  if (g.b.col_stride != 1) return true;
  const bool rows_collide = g.b.row_stride * static_cast<int64_t>(sizeof(T)) % 4096 == 0;
  return m >= pack_b_rows_any ||
         (m >= (rows_collide ? pack_b_rows_4k : pack_b_rows) && g.k * n > pack_b_size);
}

template <class T>
bool packs_a(const Gemm<T>& g, int64_t m, int64_t n) {
  return g.a.row_stride == 1 && g.a.col_stride != 1 && n >= pack_a_columns && m * g.k >= pack_a_size;
}

// The part [m0, m1) x [n0, n1) of C, on one thread: blocks of M, K and N around the macrokernel, which runs
// over tiles and panels.
template <class T>
void block_gemm(const Gemm<T>& g, const Blocks<T>& blocks, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                T* workspace) {
  const bool pack_the_b = packs_b(g, m1 - m0, n1 - n0), pack_the_a = packs_a(g, m1 - m0, n1 - n0);
  T *packed_a = workspace, *packed_b = workspace + blocks.a_size;
  const int64_t passes = max_of(1, ceil_div(g.k, blocks.kc)), pass = ceil_div(g.k, passes);
  const int64_t block = blocks.nc(max_of(1, pass));
  const bool far_c = passes > 1 || (m1 - m0) * (n1 - n0) > 2 * blocks.b_size;  // than L2 holds

  for (int64_t ic = m0; ic < m1; ic += blocks.mc) {
    const int64_t mc = min_of(blocks.mc, m1 - ic);
    for (int64_t n_pass = 0, pc = 0; n_pass < passes; ++n_pass, pc += pass) {
      const int64_t kc = min_of(pass, g.k - pc);
      BlockA<T> a = {g.a.data + ic * g.a.row_stride + pc * g.a.col_stride, g.a.row_stride, g.a.col_stride,
                     pack_the_a};
      if (pack_the_a) {
        pack_a(packed_a, a.data, g.a.col_stride, mc, kc);
        a.data = packed_a;
      }
      const auto columns = [&](int64_t j, int64_t cols) {
        if (cols == 0) return;
        PanelsB<T> b = {g.b.data + pc * g.b.row_stride + j * g.b.col_stride, g.b.row_stride, panel_width<T>,
                        false};
        if (pack_the_b || cols % Vec<T>::width != 0) {  // a ragged panel would be read past its end
          pack_b(packed_b, b.data, g.b.row_stride, g.b.col_stride, kc, cols);
          b = {packed_b, min_of(panel_width<T>, round_up(cols, Vec<T>::width)), panel_width<T> * kc, true};
        }
        macrokernel(g, ic, mc, j, cols, kc, a, b, pc > 0, far_c, n_pass == passes - 1);
      };
      for (int64_t jc = n0; jc < n1; jc += block) {
        const int64_t nc = min_of(block, n1 - jc), whole = nc / panel_width<T> * panel_width<T>;
        columns(jc, whole);
        columns(jc + whole, nc - whole);  // the narrow panel at the end has tiles of its own
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
  // Rows of B at a time; columns whose part of C stays in L1: long runs, which the hardware prefetches.
  constexpr int64_t together = 8, block = 16384 / sizeof(T);
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

// C = A B where there is next to nothing to do: a register of columns at a time, row by row.
template <class T>
void tiny_gemm(const Gemm<T>& g) {
  constexpr int64_t w = Vec<T>::width;
  T rows[tiny_size * w];  // of B, where they do not lie in rows
  for (int64_t j = 0; j < g.n; j += w) {
    const int lanes = static_cast<int>(min_of(w, g.n - j));
    const T* b = g.b.data + j * g.b.col_stride;
    int64_t b_row = g.b.row_stride;
    if (g.b.col_stride != 1 && lanes > 1) {
      for (int64_t p = 0; p < g.k; ++p) {
        for (int l = 0; l < lanes; ++l) rows[p * w + l] = b[p * b_row + l * g.b.col_stride];
      }
      b = rows, b_row = w;
    }
    const Vec<T> bias = g.epilogue.bias ? Vec<T>::load(g.epilogue.bias + j, lanes) : Vec<T>();
    for (int64_t i = 0; i < g.m; ++i) {
      const T* a = g.a.data + i * g.a.row_stride;
      Vec<T> sum;
      for (int64_t p = 0; p < g.k; ++p) {
        sum = fmadd(Vec<T>(a[p * g.a.col_stride]), Vec<T>::load(b + p * b_row, lanes), sum);
      }
      (sum + bias).store(g.c + i * g.ldc + j, lanes);
    }
  }
  activate(g.c, g.ldc, g.m, g.n, g.epilogue.activation);
}

// One product, split over at most `parts` threads.
template <class T>
void split_gemm(const Gemm<T>& g, const Blocks<T>& blocks, int64_t parts, T* workspace) {
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
      T* scratch = workspace + part * blocks.workspace();
      if (by_columns) {
        block_gemm(g, blocks, 0, g.m, from, min_of(to, g.n), scratch);
      } else {
        block_gemm(g, blocks, from, min_of(to, g.m), 0, g.n, scratch);
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
  const EpilogueColumns<T, vectors, F> columns{f,    dz ? dz + j : nullptr, dy + j, y ? y + j : nullptr, n,
                                               lanes};
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
  const Blocks<T> blocks(ctx);
  const int64_t per_thread = blocks.workspace();
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
  if (batch == 1 && flops <= 2 * tiny_size) return tiny_gemm(product(0));
  const int64_t threads = flops * static_cast<double>(batch) < serial_flops ? 1 : ctx.threads;
  T* workspace = static_cast<T*>(ctx.workspace(static_cast<size_t>(threads * per_thread) * sizeof(T)));
  if (batch == 1) return split_gemm(product(0), blocks, threads, workspace);
  const int64_t used = min_of(threads, batch);
  parallel_for(used, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t s = batch * part / used; s < batch * (part + 1) / used; ++s) {
        split_gemm(product(s), blocks, 1, workspace + part * per_thread);
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
