// The kernels of convolution: the tile of a block is gathered into shared memory (conv_problem.cuh says from where),
// and multiplied there as in gemm_simt.cuh and gemm_mma.cuh.
#pragma once
#include "conv_problem.cuh"
#include "gemm_mma.cuh"
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

// ---- tables of places, in shared memory

template <int rows, int bk, int slots>
struct PlaceTables {
  Place a_i[rows], b_i[rows], a_k[slots][bk], b_k[slots][bk];

  // f(thread of its half of the block, whether it is the half of A)
  template <class F>
  static MINIDL_DEVICE void share(int n, F f) {
    constexpr int half = gemm_block / 2;
    static_assert(rows <= half && bk <= half, "a thread fills one place of each table at most");
    const int thread = static_cast<int>(threadIdx.x) % half;
    if (thread < n) f(thread, static_cast<int>(threadIdx.x) < half);
  }
  template <class T>
  MINIDL_DEVICE void fill_rows(const ConvProblem<T>& p, const Tile& tile) {
    share(rows, [&](int r, bool of_a) {
      (of_a ? a_i : b_i)[r] =
          of_a ? p.a.row_of(tile.batch, tile.row + r, p.m) : p.b.row_of(tile.batch, tile.col + r, p.n);
    });
  }
  template <class T>
  MINIDL_DEVICE void fill_k(const ConvProblem<T>& p, const Tile& tile, int slot, int k) {
    share(bk, [&](int at, bool of_a) {
      (of_a ? a_k : b_k)[slot][at] = (of_a ? p.a : p.b).k.at(k + at, tile.k_end);
    });
  }
  // From here on a_i and b_i are where rows and columns of C lie.
  template <class T>
  MINIDL_DEVICE void fill_output(const ConvProblem<T>& p, const Tile& tile) {
    share(rows, [&](int r, bool of_a) {
      (of_a ? a_i : b_i)[r] = of_a ? p.out_i.at(tile.row + r, p.m) : p.out_j.at(tile.col + r, p.n);
    });
  }
  template <class T, class Each>
  MINIDL_DEVICE void write(const ConvProblem<T>& p, const Tile& tile, Each each) {
    __syncthreads();  // all are done with a_i and b_i
    fill_output(p, tile);
    __syncthreads();
    const T* bias = p.epilogue.bias ? p.epilogue.bias + tile.batch * p.n + tile.col : nullptr;
    T* c = p.c + tile.batch * p.c_group;
    write_tile(p, tile, bias, each, [&](int i, int j) { return c + a_i[i].offset + b_i[j].offset; });
  }
};

// ---- tiles: from global memory to registers, then to shared memory

// rows x bk elements, one at a time. Neighbouring threads take neighbours along k or along i, as the operand wants;
// along i, a thread takes `run` neighbours in k, which lie side by side in the tile (k_pitch 1), and stores them
// together.
template <class T, int rows, int bk, int row_pitch, int k_pitch, int run>
struct Gather {
  static constexpr int count = rows * bk / gemm_block;
  static_assert(gemm_block % rows == 0 && gemm_block % bk == 0 && count % run == 0);
  T held[count];

  static MINIDL_DEVICE int row_along_k(int v) {
    return static_cast<int>(threadIdx.x) / bk + v * (gemm_block / bk);
  }
  static MINIDL_DEVICE int k_along_i(int v) {
    return (static_cast<int>(threadIdx.x) / rows + v / run * (gemm_block / rows)) * run + v % run;
  }
  MINIDL_DEVICE void fetch(const Gathered<T>& x, const Place* of_i, const Place* of_k) {
    if (x.along_k) {
      const Place k = of_k[threadIdx.x % bk];
      MINIDL_UNROLL for (int v = 0; v < count; ++v) held[v] = x.read(of_i[row_along_k(v)], k);
    } else {
      const Place i = of_i[threadIdx.x % rows];
      MINIDL_UNROLL for (int v = 0; v < count; ++v) held[v] = x.read(i, of_k[k_along_i(v)]);
    }
  }
  MINIDL_DEVICE void put(bool along_k, T* tile) const {
    if (along_k) {
      T* to = tile + threadIdx.x % bk * k_pitch;
      MINIDL_UNROLL for (int v = 0; v < count; ++v) to[row_along_k(v) * row_pitch] = held[v];
    } else {
      T* to = tile + threadIdx.x % rows * row_pitch;
      MINIDL_UNROLL for (int v = 0; v < count; v += run) {
        static_assert(run == 1 || k_pitch == 1);
        Pack<T, run> pack;
        MINIDL_UNROLL for (int j = 0; j < run; ++j) pack.lane[j] = held[v + j];
        *reinterpret_cast<Pack<T, run>*>(to + k_along_i(v) * k_pitch) = pack;
      }
    }
  }
};

// A tile as the tensor cores want it. begin() starts what end() finishes; between them there is time for a product.
// With an order, 16 bytes at a time and asynchronously.
template <class T, int size, Order order>
struct GatheredTile : MmaTile<T, size, order> {
  using Tile = MmaTile<T, size, order>;
  static constexpr int width = Tile::width, in_row = Tile::length / width;
  Gather<T, size, Tile::bk, Tile::pitch, 1, order == Order::none ? width : 1> one_by_one;

  MINIDL_DEVICE void begin(T* tile, const Gathered<T>& x, const Place* of_i, const Place* of_k) {
    if constexpr (order == Order::none) {
      one_by_one.fetch(x, of_i, of_k);
    } else {
      MINIDL_UNROLL for (int v = 0; v < Tile::rows * in_row / gemm_block; ++v) {
        const int index = v * gemm_block + static_cast<int>(threadIdx.x);
        const int row = index / in_row, along = index % in_row * width;
        const Place i = of_i[Tile::k_major ? row : along], k = of_k[Tile::k_major ? along : row];
        const bool inside = x.inside(i, k);
        copy_async_16(tile + row * Tile::pitch + along, inside ? x.data + i.offset + k.offset : x.data,
                      inside ? 16 : 0);
      }
    }
  }
  MINIDL_DEVICE void end(T* tile, const Gathered<T>& x) const {
    if constexpr (order == Order::none) one_by_one.put(x.along_k, tile);
  }
};

// ---- the kernels

template <class T, int t, int bk>
__global__ void __launch_bounds__(gemm_block, gemm_blocks_per_sm)
    conv_simt_kernel(const __grid_constant__ ConvProblem<T> p) {
  constexpr int size = 16 * t, pitch = size + vec_width<T>;
  using Tables = PlaceTables<size, bk, 2>;
  MINIDL_SHARED(T, a_tile, [2][bk][pitch]);
  MINIDL_SHARED(T, b_tile, [2][bk][pitch]);
  MINIDL_SHARED(Tables, tables, [1]);
  Tables& places = tables[0];

  const Tile tile = tile_of_block<size, size>(p);
  const int k_begin = static_cast<int>(tile.k_begin), k_end = static_cast<int>(tile.k_end);
  places.fill_rows(p, tile);
  places.fill_k(p, tile, 0, k_begin);
  places.fill_k(p, tile, 1, k_begin + bk);
  __syncthreads();

  const SimtPlaces<T, t> mine;
  T acc[t][t] = {};
  Gather<T, size, bk, 1, pitch, 1> gather_a, gather_b;
  const auto fetch = [&](int slot) {
    gather_a.fetch(p.a, places.a_i, places.a_k[slot]);
    gather_b.fetch(p.b, places.b_i, places.b_k[slot]);
  };
  const auto put = [&](int slot) {
    gather_a.put(p.a.along_k, a_tile[slot][0]);
    gather_b.put(p.b.along_k, b_tile[slot][0]);
  };
  int now = 0;
  if (k_begin < k_end) {
    fetch(0);
    put(0);
  }
  __syncthreads();
  for (int k0 = k_begin; k0 < k_end; k0 += bk) {
    const bool more = k0 + bk < k_end;
    if (more) fetch(now ^ 1);
    places.fill_k(p, tile, now, k0 + 2 * bk);  // what it held was fetched before the last barrier
    mine.multiply(acc, a_tile[now], b_tile[now]);
    if (!more) break;
    now ^= 1;
    put(now);
    __syncthreads();
  }
  places.write(p, tile, [&](auto put_sum) { mine.each(acc, put_sum); });
}

template <class T, int t, Order a_order, Order b_order>
__global__ void __launch_bounds__(gemm_block, gemm_blocks_per_sm)
    conv_mma_kernel(const __grid_constant__ ConvProblem<T> p) {
  constexpr int size = 32 * t;
  using TileA = GatheredTile<T, size, a_order>;
  using TileB = GatheredTile<T, size, b_order>;
  using Tables = PlaceTables<size, TileA::bk, mma_stages>;
  constexpr int bk = TileA::bk;
  MINIDL_DYNAMIC_SHARED(T, shared);
  MINIDL_SHARED(Tables, tables, [1]);
  Tables& places = tables[0];
  T *const a_tiles = shared, *const b_tiles = shared + mma_stages * TileA::elements;

  const Tile tile = tile_of_block<size, size>(p);
  const int k_begin = static_cast<int>(tile.k_begin), k_end = static_cast<int>(tile.k_end);
  places.fill_rows(p, tile);
  for (int s = 0; s < mma_stages; ++s) places.fill_k(p, tile, s, k_begin + s * bk);
  __syncthreads();

  TileA tile_a;
  TileB tile_b;
  const auto begin = [&](int stage) {
    tile_a.begin(a_tiles + stage * TileA::elements, p.a, places.a_i, places.a_k[stage]);
    tile_b.begin(b_tiles + stage * TileB::elements, p.b, places.b_i, places.b_k[stage]);
  };
  const auto end = [&](int stage) {
    tile_a.end(a_tiles + stage * TileA::elements, p.a);
    tile_b.end(b_tiles + stage * TileB::elements, p.b);
  };
  for (int s = 0; s < mma_stages - 1; ++s) {
    begin(s);  // zeros, past the end
    copy_async_commit();
    end(s);
  }

  const MmaPlaces<T, t> mine;
  float acc[t][t][4] = {};
  int stage = 0;
  for (int k0 = k_begin; k0 < k_end; k0 += bk) {
    copy_async_wait<mma_stages - 2>();
    __syncthreads();  // as in gemm_mma_kernel; and the places of the next stage are there
    const int next = (stage + mma_stages - 1) % mma_stages;
    const bool more = k0 + (mma_stages - 1) * bk < k_end;
    if (more) begin(next);
    copy_async_commit();
    places.fill_k(p, tile, stage, k0 + mma_stages * bk);
    mine.template multiply<TileA, TileB>(acc, a_tiles + stage * TileA::elements,
                                         b_tiles + stage * TileB::elements);
    if (more) end(next);
    stage = (stage + 1) % mma_stages;
  }
  copy_async_wait<0>();
  places.write(p, tile, [&](auto put) { mine.each(acc, put); });
}

template <class T>
__global__ void __launch_bounds__(map_block) conv_numbers_kernel(const __grid_constant__ ConvProblem<T> p) {
  using W = Wide<T>;
  ThreadShare{}.each<1>(p.batch * p.m * p.n, false, [&](int64_t e, auto) {
    // Neighbouring threads: neighbouring pixels, or neighbouring channels.
    const int64_t channels = p.batch * p.n, i = p.along_i ? e % p.m : e / channels;
    const int64_t channel = p.along_i ? e / p.m : e % channels, j = channel % p.n, group = channel / p.n;
    const Axis &x = p.a.k, &y = p.b.k;
    const Place pixel = p.a.row_of(group, i, p.m);
    const int middle = static_cast<int>(x.count[1].count), fast = static_cast<int>(x.count[2].count);
    const int slow = static_cast<int>(p.k) / (middle * fast);
    W sum = 0;
    // The digits of k one by one, rather than at().
    Place in0 = {pixel.offset + x.first.offset, pixel.row + x.first.row, pixel.col + x.first.col};
    int64_t w0 = p.b.row_of(group, j, p.n).offset + y.first.offset;
    for (int d0 = 0; d0 < slow; ++d0, in0 = x.next(in0, 0), w0 += y.stride[0]) {
      Place in1 = in0;
      int64_t w1 = w0;
      for (int d1 = 0; d1 < middle; ++d1, in1 = x.next(in1, 1), w1 += y.stride[1]) {
        Place in2 = in1;
        int64_t w2 = w1;
        for (int d2 = 0; d2 < fast; ++d2, in2 = x.next(in2, 2), w2 += y.stride[2]) {
          sum += widen(p.a.read(in2, {})) * widen(p.b.data[w2]);
        }
      }
    }
    if (p.epilogue.bias) sum += widen(p.epilogue.bias[channel]);
    T* c = p.at(group, i, j);
    visit_activation<W>(p.epilogue.activation, [&](auto f) { *c = narrow<T>(f.forward(sum)); });
  });
}

template <class T>
__global__ void __launch_bounds__(map_block) conv_long_sums_kernel(const __grid_constant__ ConvProblem<T> p) {
  using W = Wide<T>;
  const int64_t size = p.batch * p.m * p.n, e = blockIdx.x % size, split = blockIdx.x / size;
  const int64_t j = e % p.n, i = e / p.n % p.m, group = e / p.n / p.m;
  const int64_t end = min_of(p.k, (split + 1) * p.k_per_split);
  const Place row = p.a.row_of(group, i, p.m), col = p.b.row_of(group, j, p.n);
  W sum = 0;
  for (int64_t k = split * p.k_per_split + threadIdx.x; k < end; k += map_block) {
    sum += widen(p.a.read(row, p.a.k.at(k, end))) * widen(p.b.read(col, p.b.k.at(k, end)));
  }
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  if (p.partial) {
    p.partial[split * size + e] = sum;
  } else {
    *p.at(group, i, j) = narrow<T>(sum);
  }
}

// The second kernel, as finish_splits_kernel.
template <class T>
__global__ void __launch_bounds__(map_block) finish_conv_kernel(const __grid_constant__ ConvProblem<T> p) {
  using W = Wide<T>;
  const int64_t size = p.batch * p.m * p.n;
  ThreadShare{}.each<1>(size, false, [&](int64_t e, auto) {
    W sum = p.partial[e];
    for (int64_t split = 1; split < p.splits; ++split) sum += p.partial[split * size + e];
    const int64_t j = e % p.n, i = e / p.n % p.m, group = e / p.n / p.m;
    if (p.epilogue.bias) sum += widen(p.epilogue.bias[group * p.n + j]);
    T* c = p.at(group, i, j);
    visit_activation<W>(p.epilogue.activation, [&](auto f) { *c = narrow<T>(f.forward(sum)); });
  });
}

}  // namespace
}  // namespace minidl::cuda
