// GEMM over its layouts, edges, blocks and epilogues, and the sum of columns.
#pragma once
#include "check.h"

namespace {

template <class T>
void check_gemm(int64_t batch, int64_t m, int64_t n, int64_t k_, int round) {
  struct Strides {
    int64_t row, col;
  };
  // Dense, transposed, both with gaps, strided both ways, one row or column for all.
  const auto layout = [](int64_t rows, int64_t cols, int which) {
    const Strides all[] = {{cols, 1},         {1, rows}, {cols + 3, 1}, {1, rows + 2},
                           {2 * cols + 1, 2}, {0, 1},    {1, 0}};
    return all[which % 7];
  };
  const Strides sa = layout(m, k_, round), sb = layout(k_, n, round / 7);
  const auto extent = [](int64_t rows, int64_t cols, Strides s) {
    return rows && cols ? (rows - 1) * s.row + (cols - 1) * s.col + 1 : 0;
  };
  const int64_t ea = extent(m, k_, sa), eb = extent(k_, n, sb), ldc = n + round % 2 * 3;
  const bool one_b = round % 3;  // for all of the batch
  const auto a = random<T>(batch * ea, -1, 1), b = random<T>(one_b ? eb : batch * eb, -1, 1),
             bias = random<T>(n);
  Epilogue<T> epilogue{round % 2 ? bias.data() : nullptr, {static_cast<ActivationKind>(round % 9), 1, 20}};
  const int64_t ec = extent(m, n, {ldc, 1}), c_size = batch && ec ? (batch - 1) * m * ldc + ec : 0;
  const Buffer<T> start(c_size);  // NaN where C is, as it is never read, and 1 between its rows
  for (int64_t i = 0; i < c_size; ++i) start.data()[i] = i % ldc < n ? T(NAN) : T(1);
  const std::string size =
      sizes("batch %ld, m %ld, n %ld, k %ld, ldc %ld, strides of A %ld %ld, of B %ld %ld", batch, m, n, k_,
            ldc, sa.row, sa.col, sb.row, sb.col);
  check<T>(
      "gemm", size, {{c_size, start.data()}}, RUN {
        k.gemm(o[0], ldc, m * ldc, {a.data(), sa.row, sa.col, ea}, {b.data(), sb.row, sb.col, one_b ? 0 : eb},
               batch, m, n, k_, epilogue, ctx);
        for (int64_t i = 0; i < c_size; ++i) {
          if (i % ldc < n ? o[0][i] != o[0][i] : o[0][i] != 1) fail("C is not written, or between its rows");
        }
      });
}

template <class T>
void check_matmul() {
  int round = 0;  // walks through the 49 pairs of layouts, 7 x 7, with every size in turn
  for (const int64_t m : {0, 1, 2, 5, 8, 13, 15, 29}) {
    for (const int64_t n : {0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 67, 131}) {
      for (const int64_t k : {0, 1, 3, 8, 17, 33}) {
        for (const int64_t batch : {0, 1, 1, 3}) check_gemm<T>(batch, m, n, k, ++round);
      }
    }
  }
  // Past the blocks of K, M and N, at which A and B are packed; rows of B 4 KB apart; a single row or column.
  const int64_t large[][3] = {{101, 67, 589}, {3, 1031, 197}, {101, 1031, 7}, {98, 197, 601}, {1031, 197, 40},
                              {26, 1024, 70}, {1, 300, 500},  {300, 1, 500},  {1, 1031, 197}, {1, 4111, 13}};
  for (const auto& s : large) {
    for (const int pair : {0, 1, 7, 8, 16, 24}) check_gemm<T>(1, s[0], s[1], s[2], pair + 49 * (pair % 2));
  }
  for (const int64_t m : {0, 1, 3, 64, 65, 131, 1000}) {
    for (const int64_t n : {0, 1, 3, 5, 8, 15, 17, 67, 300}) {
      const auto dy = random<T>(m * n), y = random<T>(m * n);
      const double scale = std::max(1.0, std::sqrt(static_cast<double>(m)) / 4);
      check<T>(
          "epilogue_backward", sizes("none, m %ld, n %ld", m, n), {{n, nullptr, scale}},
          RUN { k.epilogue_backward(nullptr, o[0], dy.data(), nullptr, m, n, {}, ctx); });
      for (const auto kind : {ActivationKind::relu, ActivationKind::sigmoid, ActivationKind::tanh}) {
        check<T>(
            "epilogue_backward", sizes("m %ld, n %ld", m, n), {{m * n}, {n, nullptr, scale}},
            RUN { k.epilogue_backward(o[0], o[1], dy.data(), y.data(), m, n, Activation{kind}, ctx); });
      }
    }
  }
}

}  // namespace
