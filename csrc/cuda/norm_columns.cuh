// Sums over rows, of each column: of batch norm where channels lie last, and for the weights of layer norm.
#pragma once
#include "norm.cuh"

namespace minidl::cuda {
namespace {

constexpr int column_warps = norm_block / 32;
constexpr int64_t column_rows = 256;  // of a block, whose threads' second look finds them in L1

// A block takes 32 columns of a part of the rows, its warps every column_warps-th of these.
struct ColumnBlock {
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t column, part, begin, end;  // rows

  MINIDL_DEVICE ColumnBlock(int64_t rows, int64_t columns) {
    const int64_t strips = ceil_div(columns, 32);
    part = blockIdx.x / strips;
    column = blockIdx.x % strips * 32 + lane;
    begin = part * column_rows + warp;
    end = column < columns ? min_of(rows, (part + 1) * column_rows) : 0;
  }
  template <class Visit>
  MINIDL_DEVICE void each(Visit visit) const {
    for (int64_t row = begin; row < end; row += column_warps) visit(row);
  }
  MINIDL_DEVICE int64_t count() const { return begin < end ? ceil_div(end - begin, column_warps) : 0; }
};

inline int64_t column_parts(int64_t rows) { return ceil_div(rows, column_rows); }
inline int64_t column_blocks(int64_t rows, int64_t columns) {
  return ceil_div(columns, 32) * column_parts(rows);
}

// The warps' values for each column, added up by the first of them.
template <class Value>
MINIDL_DEVICE void add_warps(Value& value, const ColumnBlock& block) {
  MINIDL_SHARED(Value, of_warp, [column_warps][32]);
  of_warp[block.warp][block.lane] = value;
  __syncthreads();
  for (int i = 1; block.warp == 0 && i < column_warps; ++i) value.add(of_warp[i][block.lane]);
}

template <class T>
__global__ void __launch_bounds__(norm_block)
    column_moments_kernel(Moments* parts, int64_t parts_each, const T* x, int64_t rows, int64_t columns) {
  const ColumnBlock block(rows, columns);
  Moments m = moments_of<Wide<T>>(OneThread{}, block.count(), [&](auto add) {
    block.each([&](int64_t row) { add(widen(x[row * columns + block.column])); });
  });
  add_warps(m, block);
  if (block.warp == 0 && block.column < columns) parts[block.column * parts_each + block.part] = m;
}

// The mean of a value is number row * row_step + column / column_step of the table.
template <class T>
__global__ void __launch_bounds__(norm_block)
    column_sums_kernel(GradientSums* parts, int64_t parts_each, const T* dy, const T* x,
                       NormTable<Wide<T>> table, NormAffine<T> a, int64_t rows, int64_t columns,
                       int64_t row_step, int64_t column_step) {
  const ColumnBlock block(rows, columns);
  const int64_t of_column = block.column / column_step;
  const bool inside = block.column < columns;
  const Wide<T> w = inside ? weight(a, block.column) : Wide<T>(1),
                b = inside ? bias(a, block.column) : Wide<T>(0);
  Wide<T> dz_sum = 0, dz_x_sum = 0;
  block.each([&](int64_t row) {
    const int64_t i = row * columns + block.column;
    const Wide<T> normalised = table.normal(row * row_step + of_column).of(widen(x[i]));
    const Wide<T> dz = through_relu(a, widen(dy[i]), normalised, w, b);
    dz_sum += dz, dz_x_sum += dz * normalised;
  });
  GradientSums sums{static_cast<double>(dz_sum), static_cast<double>(dz_x_sum)};
  add_warps(sums, block);
  if (block.warp == 0 && inside) parts[block.column * parts_each + block.part] = sums;
}

}  // namespace
}  // namespace minidl::cuda
