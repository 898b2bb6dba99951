// Convolution without im2col: conv.h says how, conv_units.h how it is cut up.
#include "activation.h"
#include "conv_units.h"
#include "kernels.h"
#include "parallel.h"
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t strip = 48;  // pixels whose results stay in L1 until they are stored; whole tiles
static_assert(strip % conv_rows == 0);
constexpr int64_t chunk = 576;        // of k at a time: that much of a panel stays in L2 under a strip
constexpr double serial_flops = 2e6;  // as for the GEMM
constexpr int64_t shared_bytes = int64_t{4} << 20;  // of packed weights, or of partial dw, at a time
constexpr int64_t dw_pixels = 384;                  // at most in a unit of dw: what it sums over in one go
constexpr int64_t dw_parts = 8;  // partial sums of dw: a fixed number, so that threads do not change the bits

int64_t parts_for(double flops, int threads) { return flops < serial_flops ? 1 : threads; }

// f(part, begin, end) for `parts` even ranges of [0, n), each on a thread.
template <class F>
void in_parts(int64_t n, int64_t parts, F f) {
  parallel_for(parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) f(part, n * part / parts, n * (part + 1) / parts);
  });
}

// Memory handed out piece by piece: once from address 0, to add up what is needed, and once for good.
struct Scratch {
  uintptr_t next;
  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(next);
    next += static_cast<uintptr_t>(round_up(n * static_cast<int64_t>(sizeof(T)), 64));
    return p;
  }
};

// ---- forward and dx ---------------------------------------------------------------------------------------

// y = epilogue(x * w) on the pixels of a grid. `weights(slice)` are the weights of the columns of a slice.
template <class T, class Weights>
struct Correlation {
  ImageView<T> y;
  ImageView<const T> x;
  Weights weights;
  Epilogue<T> epilogue;
  Units<T> units;
  Slices slices;
  int64_t k;

  Correlation(ImageView<T> y_, ImageView<const T> x_, Weights weights_, Epilogue<T> epilogue_, int64_t n,
              const Grid& g, const Slices& s, const Context& ctx)
      : y(y_),
        x(x_),
        weights(weights_),
        epilogue(epilogue_),
        units(n, g, s.pixel(), most_pixels(n, g, s, ctx), ctx),
        slices(s),
        k(g.taps[0] * g.taps[1] * s.sums()) {}

  // So that there are units for all threads.
  static int64_t most_pixels(int64_t n, const Grid& g, const Slices& s, const Context& ctx) {
    return max_of(strip, round_up(ceil_div(n * g.pixels() * s.count(), 2 * ctx.threads), strip));
  }

  // How much memory it takes; with that memory, does it.
  size_t run(const Context& ctx, void* memory) const {
    const Grid& g = units.grid;
    const double flops = 2.0 * units.n * g.pixels() * k * slices.count() * slices.lanes;
    const int64_t parts = parts_for(flops, ctx.threads), panel = max_of(k, 1) * slices.lanes;
    const int64_t group =
        max_of(1, min_of(slices.count(), shared_bytes / (panel * static_cast<int64_t>(sizeof(T)))));
    const int64_t band = units.images * units.band() * slices.pixel();
    int64_t* offset = nullptr;
    int64_t* tables = nullptr;
    T *init = nullptr, *panels = nullptr, *buffers = nullptr;
    const auto lay_out = [&](Scratch scratch) {
      offset = scratch.template take<int64_t>(k);
      init = scratch.template take<T>(group * slices.lanes);
      panels = scratch.template take<T>(group * panel);
      tables = scratch.template take<int64_t>(parts * 2 * units.most_pixels());
      buffers = scratch.template take<T>(parts * (band + strip * slices.lanes));
      return scratch.next;
    };
    if (!memory) return lay_out({0});
    lay_out({reinterpret_cast<uintptr_t>(memory)});
    tap_offsets(offset, units, slices);
    for (int64_t first = 0; first < slices.count(); first += group) {
      const int64_t count = min_of(group, slices.count() - first);
      in_parts(count, min_of(parts, count), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s)
          pack(slices.at(first + s), panels + s * panel, init + s * slices.lanes);
      });
      // Thread by thread unit-major, so that a band is packed once for the slices that pass over it.
      in_parts(units.count() * count, parts, [&](int64_t part, int64_t begin, int64_t end) {
        T *result = buffers + part * (band + strip * slices.lanes), *packed = result + strip * slices.lanes;
        int64_t* table = tables + part * 2 * units.most_pixels();
        PixelTable pixels{table, table + units.most_pixels()};
        int64_t packed_unit = -1, packed_group = -1;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t s = item % count;
          const Unit unit = units.at(item / count);
          const Slice slice = slices.at(first + s);
          if (item / count != packed_unit || slice.group != packed_group) {
            pixels.fill(units, unit, slices.pixel(), y);
            pack_band(packed, units, unit, slices, slice, x);
            packed_unit = item / count;
            packed_group = slice.group;
          }
          compute(unit, pixels, slice, packed, result, offset, panels + s * panel, init + s * slices.lanes);
        }
      });
    }
    return 0;
  }

  void pack(const Slice& slice, T* panel, T* init) const {
    pack_weights(panel, slices.lanes, weights(slice), slice.columns);
    fill_zero(init, slices.lanes);
    if (epilogue.bias) copy_run(init, epilogue.bias + slice.out_first, slice.columns);
  }

  void compute(const Unit& u, const PixelTable& pixels, const Slice& slice, const T* band, T* result,
               const int64_t* offset, const T* panel, const T* init) const {
    const auto microkernel = conv_microkernel_for<T>(slices.lanes, slices.depthwise);
    const int64_t chunks = max_of(1, ceil_div(k, chunk));
    const Grid& g = units.grid;
    T* out = y.data + u.image * y.image + (g.first[0] + u.row * g.step[0]) * y.row +
             (g.first[1] + u.column * g.step[1]) * y.column + slice.out_first * y.channel;
    for (int64_t begin = 0; begin < u.pixels(); begin += strip) {
      const int64_t count = min_of(strip, u.pixels() - begin);
      const T* a[strip];
      for (int64_t q = 0; q < round_up(count, conv_rows); ++q) {  // beyond the end: computed, not stored
        a[q] = band + pixels.in[begin + min_of(q, count - 1)];
      }
      // Where tiles lie in the output as they leave the registers, they need not pass through `result`.
      const int64_t* at = pixels.out + begin;
      const bool direct = y.channel == 1 && slice.columns == slices.lanes && count % conv_rows == 0 &&
                          at[count - 1] - at[0] == (count - 1) * y.column;
      if (y.channel != 1) prefetch_planes(out, at, y.channel, count, slice.columns);
      T* c = direct ? out + at[0] : result;
      const int64_t ldc = direct ? y.column : slices.lanes;
      for (int64_t part = 0; part < chunks; ++part) {
        const int64_t p = k * part / chunks, steps = k * (part + 1) / chunks - p;
        for (int64_t q = 0; q < count; q += conv_rows) {
          microkernel(steps, a + q, offset + p, panel + p * slices.lanes, c + q * ldc, ldc,
                      part == 0 ? init : nullptr);
        }
      }
      activate(c, ldc, count, slices.lanes, epilogue.activation);
      if (!direct) unpack_pixels(out, at, y.channel, result, slices.lanes, count, slice.columns);
    }
  }
};

Grid forward_grid(const ConvShape& s) {
  Grid g{};
  for (int d = 0; d < 2; ++d) {
    g.count[d] = s.out[d];
    g.step[d] = 1;
    g.taps[d] = s.kernel[d];
    g.source[d] = -s.padding[d];
    g.advance[d] = s.stride[d];
    g.spacing[d] = s.dilation[d];
  }
  return g;
}

// Input pixels (of one dimension) that are `phase` modulo the stride lie under the same taps of the kernel:
// every `tap_step`th from last_tap downwards. Downwards because a larger tap means an output pixel further
// left.
struct Phase {
  int64_t count, taps, source, spacing, last_tap, tap_step;

  Phase(const ConvShape& s, int d, int64_t phase) {
    int64_t a = s.stride[d], b = s.dilation[d];
    while (b) {
      const int64_t r = a % b;
      a = b;
      b = r;
    }
    count = phase < s.in[d] ? ceil_div(s.in[d] - phase, s.stride[d]) : 0;
    spacing = s.dilation[d] / a;
    tap_step = s.stride[d] / a;
    taps = 0;
    source = last_tap = 0;
    for (int64_t t = 0; t < s.kernel[d]; ++t) {
      const int64_t reached = phase + s.padding[d] - t * s.dilation[d];
      if (reached % s.stride[d]) continue;
      ++taps;
      last_tap = t;
      source = reached / s.stride[d];
    }
  }
};

// ---- dw ---------------------------------------------------------------------------------------------------

template <class T>
struct WeightGradient {
  ImageView<T> dw;
  ImageView<const T> dy, x;
  Units<T> units;
  Slices slices;
  int64_t k, rows;  // rows: k in whole tiles

  WeightGradient(ImageView<T> dw_, ImageView<const T> dy_, ImageView<const T> x_, int64_t n, const Grid& g,
                 const Slices& s, const Context& ctx)
      : dw(dw_),
        dy(dy_),
        x(x_),
        units(n, g, s.pixel(), dw_pixels, ctx),
        slices(s),
        k(g.taps[0] * g.taps[1] * s.sums()),
        rows(round_up(k, conv_rows)) {}

  int64_t sum_size() const { return rows * slices.lanes; }

  void run(const Context& ctx) const {
    const Grid& g = units.grid;
    const double flops = 2.0 * units.n * g.pixels() * k * slices.count() * slices.lanes;
    const int64_t threads = parts_for(flops, ctx.threads);
    const int64_t fitting = shared_bytes / static_cast<int64_t>(sizeof(T)) / max_of(sum_size(), 1);
    const int64_t parts = max_of(1, min_of(min_of(dw_parts, units.count()), fitting));
    const int64_t group = max_of(1, min_of(slices.count(), fitting / parts));
    const int64_t band = units.images * units.band() * slices.pixel();
    int64_t *offset = nullptr, *tables = nullptr;
    T *sums = nullptr, *buffers = nullptr;
    const auto lay_out = [&](Scratch scratch) {
      offset = scratch.template take<int64_t>(rows);
      tables = scratch.template take<int64_t>(threads * 2 * units.most_pixels());
      sums = scratch.template take<T>(group * parts * sum_size());
      buffers = scratch.template take<T>(threads * (band + units.most_pixels() * slices.lanes));
      return scratch.next;
    };
    lay_out({reinterpret_cast<uintptr_t>(ctx.workspace(lay_out({0})))});
    tap_offsets(offset, units, slices);
    for (int64_t r = k; r < rows; ++r) offset[r] = 0;  // computed, not used
    for (int64_t first = 0; first < slices.count(); first += group) {
      const int64_t count = min_of(group, slices.count() - first);
      in_parts(parts * count, min_of(threads, parts * count),
               [&](int64_t thread, int64_t begin, int64_t end) {
                 int64_t* table = tables + thread * 2 * units.most_pixels();
                 PixelTable pixels{table, table + units.most_pixels()};
                 T* buffer = buffers + thread * (band + units.most_pixels() * slices.lanes);
                 // Item by item part-major: all slices of a part, a thread's own, pass over the band of a
                 // unit.
                 for (int64_t item = begin; item < end;) {
                   const int64_t part = item / count, last = min_of(end, (part + 1) * count);
                   add_part(part, parts, first, item - part * count, last - part * count, count, offset,
                            pixels, buffer, sums);
                   item = last;
                 }
               });
      in_parts(count, min_of(threads, count), [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s)
          finish(slices.at(first + s), sums + s * sum_size(), parts, count);
      });
    }
  }

  // The sums of slices [s0, s1) over one part of the units.
  void add_part(int64_t part, int64_t parts, int64_t first, int64_t s0, int64_t s1, int64_t count,
                const int64_t* offset, PixelTable& pixels, T* buffer, T* sums) const {
    const int64_t begin = units.count() * part / parts, end = units.count() * (part + 1) / parts;
    T *dy_panel = buffer, *band = buffer + units.most_pixels() * slices.lanes;
    for (int64_t s = s0; s < s1 && begin == end; ++s)
      fill_zero(sums + (part * count + s) * sum_size(), sum_size());
    for (int64_t item = begin; item < end; ++item) {
      const Unit u = units.at(item);
      pixels.fill(units, u, slices.pixel(), dw);
      int64_t packed_group = -1;
      for (int64_t s = s0; s < s1; ++s) {
        const Slice slice = slices.at(first + s);
        if (slice.group != packed_group) pack_band(band, units, u, slices, slice, x);
        packed_group = slice.group;
        pack_dy(dy_panel, u, slice);
        add(sums + (part * count + s) * sum_size(), item > begin, band, offset, pixels.in, dy_panel,
            u.pixels());
      }
    }
  }

  void pack_dy(T* panel, const Unit& u, const Slice& slice) const {
    for (int64_t i = 0; i < u.images; ++i) {
      for (int64_t r = 0; r < u.rows; ++r) {
        const T* row =
            dy.data + (u.image + i) * dy.image + slice.out_first * dy.channel + (u.row + r) * dy.row;
        pack_pixels(panel + (i * u.rows + r) * u.columns * slices.lanes, slices.lanes,
                    PixelRow<T>{row, dy.channel, dy.column, dy.width, u.column, 1, u.columns, slice.columns});
      }
    }
  }

  void add(T* sum, bool accumulate, const T* band, const int64_t* offset, const int64_t* pixel_offset,
           const T* dy_panel, int64_t pixels) const {
    const auto microkernel = conv_microkernel_for<T>(slices.lanes, slices.depthwise);
    alignas(64) const T zero[panel_width<T>] = {};
    for (int64_t r = 0; r < rows; r += conv_rows) {
      const T* a[conv_rows];
      for (int i = 0; i < conv_rows; ++i) a[i] = band + offset[r + i];
      microkernel(pixels, a, pixel_offset, dy_panel, sum + r * slices.lanes, slices.lanes,
                  accumulate ? nullptr : zero);
    }
  }

  // The sum of the parts, in their order, -> dw.
  void finish(const Slice& slice, T* sum, int64_t parts, int64_t count) const {
    for (int64_t part = 1; part < parts; ++part) {
      const T* other = sum + part * count * sum_size();
      for_lanes<T>(0, k * slices.lanes, [&](int64_t i, int64_t lanes, auto tag) {
        store_lanes(load_lanes(sum + i, lanes, tag) + load_lanes(other + i, lanes, tag), sum + i, lanes, tag);
      });
    }
    const Grid& g = units.grid;
    unpack_weights(WeightView<T>{dw.data + slice.out_first * dw.image,
                                 dw.image,
                                 dw.channel,
                                 {dw.row, dw.column},
                                 slices.sums(),
                                 {g.taps[0], g.taps[1]}},
                   sum, slices.lanes, slice.columns);
  }
};

// ---- db and the activation --------------------------------------------------------------------------------

// dz = dy * f'(y), and the sum of dz, of one plane; y is nullptr where dy stands for dz.
template <class T, class F>
double plane_backward(F f, T* dz, const T* dy, const T* y, int64_t n) {
  constexpr int64_t block = 64 * Vec<T>::width;  // sums of blocks are added in double: they lose no digits
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    Vec<T> sum;
    for_lanes<T>(begin, min_of(begin + block, n), [&](int64_t i, int64_t lanes, auto tag) {
      Vec<T> d = load_lanes(dy + i, lanes, tag);
      if (dz) {
        d = f.backward(d, load_lanes(y + i, lanes, tag));
        store_lanes(d, dz + i, lanes, tag);
      }
      sum = sum + keep_lanes(d, lanes, T(0), tag);
    });
    total += reduce_add(sum);
  }
  return total;
}

}  // namespace

template <class T>
void conv_forward(ImageView<T> y, ImageView<const T> x, ImageView<const T> w, ConvShape s,
                  Epilogue<T> epilogue, Context ctx) {
  const Slices slices(s.groups, s.in_channels, s.out_channels, Vec<T>::width, panel_width<T>);
  const auto weights = [&](const Slice& slice) {
    return WeightView<const T>{
        w.data + slice.out_first * w.image, w.image, w.channel, {w.row, w.column}, slices.sums(),
        {s.kernel[0], s.kernel[1]}};
  };
  const Correlation<T, decltype(weights)> correlation(y, x, weights, epilogue, s.n, forward_grid(s), slices,
                                                      ctx);
  correlation.run(ctx, ctx.workspace(correlation.run(ctx, nullptr)));
}

template <class T>
void conv_backward_input(ImageView<T> dx, ImageView<const T> dy, ImageView<const T> w, ConvShape s,
                         Epilogue<T> epilogue, Context ctx) {
  const Slices slices(s.groups, s.out_channels, s.in_channels, Vec<T>::width, panel_width<T>);
  const auto run_phase = [&](int64_t phase, void* memory) {
    const Phase phases[2] = {{s, 0, phase / s.stride[1]}, {s, 1, phase % s.stride[1]}};
    Grid g{};
    for (int d = 0; d < 2; ++d) {
      const Phase& p = phases[d];
      g.count[d] = p.count;
      g.first[d] = d == 0 ? phase / s.stride[1] : phase % s.stride[1];
      g.step[d] = s.stride[d];
      g.taps[d] = p.taps;
      g.source[d] = p.source;
      g.advance[d] = 1;
      g.spacing[d] = p.spacing;
    }
    const auto weights = [&](const Slice& slice) {
      const int64_t in_first = slices.depthwise ? 0 : slice.out_first - slice.group * s.in_channels;
      const T* last = w.data + slice.in_first * w.image + in_first * w.channel + phases[0].last_tap * w.row +
                      phases[1].last_tap * w.column;
      return WeightView<const T>{last,          slices.depthwise ? w.image : w.channel,
                                 w.image,       {-phases[0].tap_step * w.row, -phases[1].tap_step * w.column},
                                 slices.sums(), {g.taps[0], g.taps[1]}};
    };
    return Correlation<T, decltype(weights)>(dx, dy, weights, epilogue, s.n, g, slices, ctx).run(ctx, memory);
  };
  size_t bytes = 1;
  for (int64_t phase = 0; phase < s.stride[0] * s.stride[1]; ++phase) {
    const size_t needed = run_phase(phase, nullptr);
    bytes = needed > bytes ? needed : bytes;
  }
  void* memory = ctx.workspace(bytes);
  for (int64_t phase = 0; phase < s.stride[0] * s.stride[1]; ++phase) run_phase(phase, memory);
}

template <class T>
void conv_backward_weight(ImageView<T> dw, ImageView<const T> dy, ImageView<const T> x, ConvShape s,
                          Context ctx) {
  const Slices slices(s.groups, s.in_channels, s.out_channels, Vec<T>::width, panel_width<T>);
  WeightGradient<T>(dw, dy, x, s.n, forward_grid(s), slices, ctx).run(ctx);
}

template <class T>
void planes_epilogue_backward(T* dz, T* db, const T* dy, const T* y, ClassShape s, Activation activation,
                              Context ctx) {
  const int64_t planes = s.outer * s.classes;
  double* sums = static_cast<double*>(ctx.workspace(static_cast<size_t>(planes) * sizeof(double)));
  visit_activation<T>(activation, [&](auto f) {
    parallel_for(planes, ceil_div(int64_t{1} << 15, max_of(s.inner, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t at = p * s.inner;
        sums[p] = plane_backward(f, dz ? dz + at : nullptr, dy + at, y ? y + at : nullptr, s.inner);
      }
    });
  });
  for (int64_t c = 0; db && c < s.classes; ++c) {
    double total = 0;
    for (int64_t o = 0; o < s.outer; ++o) total += sums[o * s.classes + c];
    db[c] = static_cast<T>(total);
  }
}

#define INSTANTIATE(T)                                                                                     \
  template void conv_forward(ImageView<T>, ImageView<const T>, ImageView<const T>, ConvShape, Epilogue<T>, \
                             Context);                                                                     \
  template void conv_backward_input(ImageView<T>, ImageView<const T>, ImageView<const T>, ConvShape,       \
                                    Epilogue<T>, Context);                                                 \
  template void conv_backward_weight(ImageView<T>, ImageView<const T>, ImageView<const T>, ConvShape,      \
                                     Context);                                                             \
  template void planes_epilogue_backward(T*, T*, const T*, const T*, ClassShape, Activation, Context);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace minidl::MINIDL_ISA
