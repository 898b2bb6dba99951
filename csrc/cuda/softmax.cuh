// How threads share the rows of a ClassShape. The kernels of softmax.cu are written once over any team:
//
//   ThreadTeam   rows whose classes lie `inner` apart: a thread a row, so that neighbours read neighbours
//   WarpTeam     short dense rows: a warp a row
//   BlockTeam    long dense rows: a block a row
//
//   rank, size        of a thread in its team
//   first, step       the rows of the team are first, first + step...
//   max, sum          over the team, in a fixed order, to each of its threads
#pragma once
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

constexpr int row_block = 128;  // threads of a block of ThreadTeams or WarpTeams

struct ThreadTeam {
  static constexpr bool dense = false;
  static constexpr int most_threads = row_block;
  static constexpr int rank = 0, size = 1;
  int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  template <class W>
  MINIDL_DEVICE W max(W v) const {
    return v;
  }
  template <class W>
  MINIDL_DEVICE W sum(W v) const {
    return v;
  }
};

struct WarpTeam {
  static constexpr bool dense = true;
  static constexpr int most_threads = row_block;
  static constexpr int size = 32;
  int rank = static_cast<int>(threadIdx.x % 32);
  int64_t first = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32,
          step = int64_t(gridDim.x) * (blockDim.x / 32);
  template <class W>
  MINIDL_DEVICE W max(W v) const {
    return warp_reduce<Max>(v);
  }
  template <class W>
  MINIDL_DEVICE W sum(W v) const {
    return warp_reduce<Sum>(v);
  }
};

struct BlockTeam {
  static constexpr bool dense = true;
  static constexpr int most_threads = 512;
  int rank = static_cast<int>(threadIdx.x), size = static_cast<int>(blockDim.x);
  int64_t first = blockIdx.x, step = gridDim.x;
  template <class W>
  MINIDL_DEVICE W max(W v) const {
    return block_reduce<Max>(v, v);  // twice the same number changes no maximum
  }
  template <class W>
  MINIDL_DEVICE W sum(W v) const {
    return block_sum(v);
  }
};

// One row: class c is element offset + c * stride of the tensors.
template <class T>
struct Row {
  int64_t index, offset, classes, stride;
  int head;  // classes before the first 16-byte boundary; -1: no vectors

  // Calls visit(c, element, width) with the share of the team's member `rank` of `size`.
  template <class Team, class Visit>
  MINIDL_DEVICE void each(const Team& team, Visit visit) const {
    constexpr int width = vec_width<T>;
    const std::integral_constant<int, 1> one;
    int64_t c = 0;
    if (Team::dense && head >= 0) {
      const int64_t begin = min_of<int64_t>(head, classes), end = begin + (classes - begin) / width * width;
      if (team.rank < begin) visit(int64_t(team.rank), offset + team.rank, one);
      for (int64_t v = begin + int64_t(team.rank) * width; v < end; v += int64_t(team.size) * width) {
        visit(v, offset + v, std::integral_constant<int, width>{});
      }
      c = end;
    }
    for (c += team.rank; c < classes; c += team.size) visit(c, offset + c * stride, one);
  }
};

// f.row(team, row) for each row of the team, then f.finish() once in each thread.
template <class T, class Team, class F>
__global__ void __launch_bounds__(Team::most_threads) row_kernel(ClassShape s, int misaligned, F f) {
  const Team team;
  f.start(s);
  for (int64_t r = team.first; r < s.outer * s.inner; r += team.step) {
    const int64_t o = r / s.inner, offset = o * s.classes * s.inner + r % s.inner;
    const int skew = static_cast<int>((misaligned + offset) % vec_width<T>);
    f.row(team,
          Row<T>{r, offset, s.classes, s.inner, misaligned < 0 ? -1 : (vec_width<T> - skew) % vec_width<T>});
  }
  f.finish();
}

// Elements by which all of these pointers lie beyond a 16-byte boundary, -1 if they differ.
template <class T, class... P>
int misalignment(const T* first, P... others) {
  const auto beyond = [](const void* p) { return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16); };
  if (!((beyond(others) == beyond(first)) && ...) || beyond(first) % sizeof(T)) return -1;
  return beyond(first) / static_cast<int>(sizeof(T));
}

constexpr size_t reduction_bytes = 1024;  // of static shared memory, at most
constexpr int64_t warp_classes = 1024;    // from here on a row takes a block

struct RowLaunch {
  int64_t blocks;
  int threads;
  size_t dynamic_bytes;  // 0: rows do not fit
};

// `cached`: values of a row that a kernel keeps for a second look, as Cache says.
template <class T>
RowLaunch plan_rows(ClassShape s, const Context& ctx, int cached = 0) {
  const int64_t rows = s.outer * s.inner;
  if (s.inner != 1) return {grid_stride_blocks(rows, row_block, ctx, 16), row_block, 0};
  const bool warps = s.classes <= warp_classes;
  const int team = warps ? 32 : s.classes <= 8 * warp_classes ? 256 : BlockTeam::most_threads;
  const int threads = warps ? row_block : team;
  const int64_t slots = 2 + ceil_div(ceil_div(s.classes, vec_width<T>), team) * vec_width<T>;
  const size_t bytes = static_cast<size_t>(cached * slots * threads) * sizeof(Wide<T>);
  return {grid_stride_blocks(rows, warps ? row_block / 32 : 1, ctx, 2048 / threads), threads,
          bytes + reduction_bytes <= most_shared_bytes(ctx) ? bytes : 0};
}

// Launches f over the rows with the team that suits them.
template <class T, class F>
void launch_rows(ClassShape s, int misaligned, RowLaunch plan, const Context& ctx, F f) {
  auto kernel = s.inner != 1                ? row_kernel<T, ThreadTeam, F>
                : s.classes <= warp_classes ? row_kernel<T, WarpTeam, F>
                                            : row_kernel<T, BlockTeam, F>;
  launch(kernel, plan.blocks, plan.threads, plan.dynamic_bytes, ctx, s, misaligned, f);
}

// A thread's own queue in dynamic shared memory, each slot `blockDim.x` numbers wide: no bank conflicts, and
// no barriers, as nobody else looks. What a first pass over a row puts, a second takes in the same order.
template <class W>
struct Cache {
  W* next;
  bool used;
  explicit MINIDL_DEVICE Cache(bool used_) : used(used_) {
    MINIDL_DYNAMIC_SHARED(W, memory);
    next = memory + threadIdx.x;
  }
  template <int n>
  MINIDL_DEVICE void put(const W (&values)[n]) {
    MINIDL_UNROLL for (int j = 0; used && j < n; ++j, next += blockDim.x)* next = values[j];
  }
  // The values that were put, or loads of them.
  template <int n, class T>
  MINIDL_DEVICE void take(W (&values)[n], const T* p) {
    if (!used) return load<n>(values, p);
    MINIDL_UNROLL for (int j = 0; j < n; ++j, next += blockDim.x) values[j] = *next;
  }
};

// The maximum and the sum of exp(x - maximum), met one vector after another. (Milakov and Gimelshein,
// arXiv:1805.02867.) A NaN or +inf anywhere makes the sum NaN.
template <class W>
struct OnlineSum {
  // Not -inf: exp(x - max) is then 0, not NaN, as long as every x is -inf.
  W max = static_cast<W>(sizeof(W) == 4 ? -3.402823466e38 : -1.7976931348623157e308), sum = 0;

  template <int n>
  MINIDL_DEVICE void add(const W (&x)[n]) {
    W m = max;
    MINIDL_UNROLL for (int j = 0; j < n; ++j) m = fmax(m, x[j]);
    if (m > max) {
      sum *= exp(max - m);
      max = m;
    }
    MINIDL_UNROLL for (int j = 0; j < n; ++j) sum += exp(x[j] - m);
  }
  template <class Team>
  MINIDL_DEVICE void merge(const Team& team) {
    const W m = team.max(max);
    sum = team.sum(sum * exp(max - m));
    max = m;
  }
};

}  // namespace
}  // namespace minidl::cuda
