// Kernels over a list of tensors, all in one launch.
#pragma once
#include "vec.cuh"

namespace minidl::cuda {
namespace {

constexpr int list_block = 256;

// Tensors are cut into chunks, a block each. The list travels by value as an argument of the kernel, in one
// of two sizes: a small model's launch copies little, a large one's takes few launches.

constexpr int64_t least_chunk = 1024, largest_chunk = 65536;

// Row: what a kernel knows of a tensor; has int64_t n.
template <class Row, int capacity_>
struct List {
  static constexpr int capacity = capacity_;
  Row rows[capacity];
  int first_chunk[capacity + 1];  // of each tensor, in the row of all chunks of this launch
  int count;
  int64_t chunk;
};

constexpr size_t argument_bytes = 32764 - 512;  // what a kernel takes, less its other arguments
template <class Row>
constexpr int most_rows = static_cast<int>((argument_bytes - 24) / (sizeof(Row) + sizeof(int)));

// The elements [begin, end) of one tensor.
struct Range {
  int tensor;
  int64_t begin, end;
};

template <class Rows>
MINIDL_DEVICE Range range_of_block(const Rows& list) {
  int low = 0, high = list.count;  // first_chunk[low] <= blockIdx.x < first_chunk[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.first_chunk[middle] <= static_cast<int>(blockIdx.x)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = (static_cast<int>(blockIdx.x) - list.first_chunk[low]) * list.chunk;
  return {low, begin, min_of(begin + list.chunk, list.rows[low].n)};
}

// Calls visit(i, width) with this thread's share of the range.
template <class T, class Visit>
MINIDL_DEVICE void each_in(Range range, bool vectors, Visit visit) {
  constexpr int width = vec_width<T>;
  int64_t i = range.begin;
  if (vectors) {  // chunks are whole vectors, so begin is aligned where the tensor is
    const int64_t end = range.begin + (range.end - range.begin) / width * width;
    for (int64_t v = i + int64_t(threadIdx.x) * width; v < end; v += list_block * width) {
      visit(v, std::integral_constant<int, width>{});
    }
    i = end;
  }
  for (i += threadIdx.x; i < range.end; i += list_block) visit(i, std::integral_constant<int, 1>{});
}

// f(row, range, index of its chunk among all), once a block.
template <class Rows, class F>
__global__ void __launch_bounds__(list_block)
    list_kernel(const __grid_constant__ Rows list, int64_t chunks_before, F f) {
  const Range range = range_of_block(list);
  f(list.rows[range.tensor], range, chunks_before + blockIdx.x);
}

// Two blocks an SM, if the chunks are not to be too small to be worth one.
inline int64_t chunk_for(int64_t total, const Context& ctx) {
  const int64_t even = ceil_div(total, 2 * sm_count(ctx));
  return min_of(max_of(ceil_div(even, least_chunk) * least_chunk, least_chunk), largest_chunk);
}

// Launches f over tensors make(0 .. count - 1), as many in a launch as a List<Row, capacity> takes.
template <int capacity, class Make, class F>
void launch_list(int64_t count, int64_t chunk, const Context& ctx, Make make, F f) {
  using Row = decltype(make(0));
  List<Row, capacity> list;
  list.chunk = chunk;
  int64_t chunks_before = 0, k = 0;
  while (k < count) {
    int64_t chunks = 0;
    for (list.count = 0; k < count && list.count < capacity; ++k) {
      const Row row = make(k);
      const int64_t of_row = ceil_div(row.n, chunk);
      if (of_row == 0) continue;
      if (chunks > 0 && chunks + of_row > (int64_t(1) << 30)) break;  // chunks are counted in an int
      list.first_chunk[list.count] = static_cast<int>(chunks);
      list.rows[list.count++] = row;
      chunks += of_row;
    }
    list.first_chunk[list.count] = static_cast<int>(chunks);
    launch(list_kernel<List<Row, capacity>, F>, chunks, list_block, 0, ctx, list, chunks_before, f);
    chunks_before += chunks;
  }
}

template <class Make, class F>
void for_each_tensor(int64_t count, int64_t chunk, const Context& ctx, Make make, F f) {
  constexpr int few = 24;
  if (count <= few) {
    launch_list<few>(count, chunk, ctx, make, f);
  } else {
    launch_list<most_rows<decltype(make(0))>>(count, chunk, ctx, make, f);
  }
}

template <class Tensors>
int64_t elements(const Tensors* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t k = 0; k < count; ++k) total += tensors[k].n;
  return total;
}

}  // namespace
}  // namespace minidl::cuda
