#include "conv.cuh"

namespace minidl::cuda {
namespace {

// ---- from views to axes

// The pixels source + o * advance of a picture, o < count, as digits.
template <class T>
Axis pixel_axis(int64_t n, const int64_t (&count)[2], const ImageView<T>& x, const int64_t (&source)[2],
                const int64_t (&advance)[2]) {
  const Place first = {source[0] * x.row + source[1] * x.column, static_cast<int>(source[0]),
                       static_cast<int>(source[1])};
  return axis_of(first, {n, x.image}, {count[0], advance[0] * x.row, advance[0]},
                 {count[1], advance[1] * x.column, 0, advance[1]});
}
// The same, of pixels that need no test whether they lie in the picture: an operand of height and width 1.
template <class T>
Axis inner_pixel_axis(int64_t n, const int64_t (&count)[2], const ImageView<T>& x, const int64_t (&source)[2],
                      const int64_t (&advance)[2]) {
  return axis_of({source[0] * x.row + source[1] * x.column, 0, 0}, {n, x.image},
                 {count[0], advance[0] * x.row}, {count[1], advance[1] * x.column});
}

// Channels and taps of a kernel. The fastest digit is the one whose neighbours lie together in the picture.
Axis tap_axis(bool channels_last, Place first, Digit channel, Digit row, Digit col) {
  return channels_last ? axis_of(first, row, col, channel) : axis_of(first, channel, row, col);
}

Axis channel_axis(int64_t count, int64_t stride) { return axis_of({}, {1}, {1}, {count, stride}); }

constexpr int64_t origin[2] = {0, 0}, unit[2] = {1, 1};

template <class T>
Gathered<T> gathered(const ImageView<const T>& x, Axis i, Axis k, bool bounded, int64_t group_channels,
                     int64_t channel_stride, int64_t groups) {
  const auto distance = [](const Axis& axis) {
    return axis.stride[2] < 0 ? -axis.stride[2] : axis.stride[2];
  };
  const bool along_k =
      distance(k) != distance(i) ? distance(k) < distance(i) : k.count[2].count > i.count[2].count;
  return {x.data,
          i,
          k,
          bounded ? static_cast<int>(x.height) : 1,
          bounded ? static_cast<int>(x.width) : 1,
          groups > 1 ? group_channels * channel_stride : 0,
          along_k};
}

// ---- the plan, and the launches

constexpr int64_t few_channels = 8;
constexpr int not_supported = 801;  // cudaErrorNotSupported

// Whether every index, rounded up to whole blocks, and every row and column fits its 32 bits.
template <class T>
bool representable(const ConvProblem<T>& p, const ConvShape& s) {
  constexpr int64_t most = INT32_MAX - (1 << 10);
  bool fits = p.m <= most && p.n <= most && p.k <= most;
  for (int d = 0; d < 2; ++d) fits &= s.in[d] + 2 * s.padding[d] + s.dilation[d] * s.kernel[d] < most_rows;
  return fits;
}

// Decides how p is computed; the bytes of workspace that it takes.
template <class T>
size_t prepare(ConvProblem<T>& p, const Context& ctx) {
  if (p.batch == 0 || p.m == 0 || p.n == 0 || p.path == ConvPath::numbers) return 0;
  if (p.path == ConvPath::long_sums) {
    split_k(p, p.batch * p.m * p.n, ctx);
  } else {
    p.large = sizeof(T) < 8 && p.m > 64 && p.n > 64 && tiles_of(p, 128) >= sm_count(ctx);
    split_k(p, tiles_of(p, p.large ? 128 : 64), ctx);
  }
  if (p.splits == 1 && fits_in_tile(p.epilogue.activation.kind)) return 0;
  return sizeof(Wide<T>) * static_cast<size_t>(p.splits * p.batch * p.m * p.n);
}

// How an operand can be read 16 bytes at a time: those of a vector are all inside the picture or all outside.
template <class T>
Order vector_order(const Gathered<T>& x) {
  constexpr int64_t width = vec_width<T>;
  const auto whole = [](const Axis& axis, int digits) {
    bool is = axis.first.offset % width == 0;
    for (int d = 0; d < digits; ++d) is &= axis.stride[d] % width == 0;
    return is;
  };
  const auto runs = [&](const Axis& along, const Axis& across) {
    return along.stride[2] == 1 && along.row[2] == 0 && along.col[2] == 0 &&
           along.count[2].count % width == 0 && whole(along, 2) && whole(across, 3);
  };
  if (!aligned(x.data) || x.group % width != 0) return Order::none;
  return runs(x.k, x.i) ? Order::k : runs(x.i, x.k) ? Order::i : Order::none;
}

template <class T, int t>
void launch_mma(const ConvProblem<T>& p, int64_t blocks, const Context& ctx) {
  const auto with = [&]<Order a, Order b>() {
    launch(conv_mma_kernel<T, t, a, b>, blocks, gemm_block, mma_shared_bytes<T, t, a, b>, ctx, p);
  };
  // The pairs of channels_last: forward, dx, dw.
  const Order a = vector_order(p.a), b = vector_order(p.b);
  if (a == Order::k && b == Order::k) return with.template operator()<Order::k, Order::k>();
  if (a == Order::k && b == Order::i) return with.template operator()<Order::k, Order::i>();
  if (a == Order::i && b == Order::i) return with.template operator()<Order::i, Order::i>();
  with.template operator()<Order::none, Order::none>();
}

template <class T>
void launch_tiles(const ConvProblem<T>& p, const Context& ctx) {
  const int64_t blocks = tiles_of(p, p.large ? 128 : 64) * p.splits;
  const auto simt = [&]<int t, int bk>() {
    launch(conv_simt_kernel<T, t, bk>, blocks, gemm_block, 0, ctx, p);
  };
  if constexpr (sizeof(T) == 8) {
    simt.template operator()<4, 8>();
  } else {
    if constexpr (sizeof(T) == 4) {
      if (!ctx.allow_conv_tf32)
        return p.large ? simt.template operator()<8, 8>() : simt.template operator()<4, 16>();
    }
    p.large ? launch_mma<T, 4>(p, blocks, ctx) : launch_mma<T, 2>(p, blocks, ctx);
  }
}

// Computes what prepare() has planned, with its workspace.
template <class T>
void compute(ConvProblem<T> p, size_t bytes, void* workspace, const Context& ctx) {
  const int64_t size = p.batch * p.m * p.n;
  if (size == 0) return;
  if (bytes > 0) p.partial = static_cast<Wide<T>*>(workspace);
  if (p.path == ConvPath::numbers) {
    launch(conv_numbers_kernel<T>, grid_stride_blocks(size, map_block, ctx), map_block, 0, ctx, p);
  } else if (p.path == ConvPath::long_sums) {
    launch(conv_long_sums_kernel<T>, size * p.splits, map_block, 0, ctx, p);
  } else {
    launch_tiles(p, ctx);
  }
  if (p.partial) {
    launch(finish_conv_kernel<T>, grid_stride_blocks(size, map_block, ctx), map_block, 0, ctx, p);
  }
}

// ---- dx

// Input pixels (of one dimension) that are `phase` modulo the stride lie under the same taps of the kernel: every
// `tap_step`th from last_tap downwards. Downwards because a larger tap means an output pixel further left.
struct Phase {
  int64_t count, taps = 0, source = 0, spacing, last_tap = 0, tap_step;

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
    for (int64_t t = 0; t < s.kernel[d]; ++t) {
      const int64_t reached = phase + s.padding[d] - t * s.dilation[d];
      if (reached % s.stride[d]) continue;
      ++taps;
      last_tap = t;
      source = reached / s.stride[d];
    }
  }
};

template <class T>
ConvProblem<T> input_gradient(ImageView<T> dx, ImageView<const T> dy, ImageView<const T> w,
                              const ConvShape& s, Epilogue<T> epilogue, int64_t phase_row,
                              int64_t phase_col) {
  const Phase r(s, 0, phase_row), c(s, 1, phase_col);
  const int64_t count[2] = {r.count, c.count}, source[2] = {r.source, c.source};
  const int64_t first[2] = {phase_row, phase_col};
  const bool channels_last = dy.channel == 1;
  const Axis of_dy =
      tap_axis(channels_last, {}, {s.out_channels, dy.channel}, {r.taps, r.spacing * dy.row, r.spacing},
               {c.taps, c.spacing * dy.column, 0, c.spacing});
  const Axis of_w =
      tap_axis(channels_last, {r.last_tap * w.row + c.last_tap * w.column, 0, 0}, {s.out_channels, w.image},
               {r.taps, -r.tap_step * w.row}, {c.taps, -c.tap_step * w.column});
  return {.c = dx.data,
          .out_i = inner_pixel_axis(s.n, count, dx, first, s.stride),
          .out_j = channel_axis(s.in_channels, dx.channel),
          .c_group = s.in_channels * dx.channel,
          .a = gathered(dy, pixel_axis(s.n, count, dy, source, unit), of_dy, true, s.out_channels, dy.channel,
                        s.groups),
          .b = gathered(w, channel_axis(s.in_channels, w.channel), of_w, false, s.out_channels, w.image,
                        s.groups),
          .batch = s.groups,
          .m = s.n * r.count * c.count,
          .n = s.in_channels,
          .k = s.out_channels * r.taps * c.taps,
          .epilogue = epilogue,
          .path = s.groups > 1 && s.in_channels <= few_channels ? ConvPath::numbers : ConvPath::tiles,
          .along_i = dx.channel > 1};
}

// ---- the derivative of an epilogue, and sums of planes
//
// A block takes the pixels of one class in a run of all its planes' pixels, `width` at a time.

template <class T, class F>
__global__ void __launch_bounds__(map_block)
    planes_backward_kernel(T* dz, T* db, double* partial, const T* dy, const T* y, ClassShape s,
                           int64_t per_run, bool vectors, F f) {
  using W = Wide<T>;
  const int64_t channel = blockIdx.x % s.classes, run = blockIdx.x / s.classes;
  const int64_t end = min_of(s.outer * s.inner, (run + 1) * per_run);
  double sum = 0;
  const auto add = [&](auto width) {
    constexpr int64_t step = map_block * width;
    const int64_t outer_step = step / s.inner, inner_step = step % s.inner;
    int64_t at = run * per_run + threadIdx.x * width, outer = at / s.inner, inner = at % s.inner;
    while (at < end) {
      W several = 0;  // summed in W, their sums in double
      for (int v = 0; v < 16 && at < end; ++v) {
        const int64_t i = (outer * s.classes + channel) * s.inner + inner;
        W g[width], output[width];
        load<width>(g, dy + i);
        if (dz) {
          load<width>(output, y + i);
          MINIDL_UNROLL for (int j = 0; j < width; ++j) g[j] = f.backward(g[j], output[j]);
          store<width>(dz + i, g);
        }
        MINIDL_UNROLL for (int j = 0; j < width; ++j) several += g[j];
        at += step, outer += outer_step, inner += inner_step;
        if (inner >= s.inner) inner -= s.inner, ++outer;
      }
      sum += static_cast<double>(several);
    }
  };
  if (s.inner > 0) {
    if (vectors) {
      add(std::integral_constant<int, vec_width<T>>{});
    } else {
      add(std::integral_constant<int, 1>{});
    }
  }
  if (!db) return;
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  if (partial) {
    partial[run * s.classes + channel] = sum;
  } else {
    db[channel] = narrow<T>(static_cast<W>(sum));
  }
}

}  // namespace

// ---- launchers

template <class T>
void conv_forward(ImageView<T> y, ImageView<const T> x, ImageView<const T> w, ConvShape s,
                  Epilogue<T> epilogue, Context ctx) {
  const bool channels_last = x.channel == 1;
  const int64_t source[2] = {-s.padding[0], -s.padding[1]};
  const Axis of_x = tap_axis(channels_last, {}, {s.in_channels, x.channel},
                             {s.kernel[0], s.dilation[0] * x.row, s.dilation[0]},
                             {s.kernel[1], s.dilation[1] * x.column, 0, s.dilation[1]});
  const Axis of_w =
      tap_axis(channels_last, {}, {s.in_channels, w.channel}, {s.kernel[0], w.row}, {s.kernel[1], w.column});
  ConvProblem<T> p = {
      .c = y.data,
      .out_i = inner_pixel_axis(s.n, s.out, y, origin, unit),
      .out_j = channel_axis(s.out_channels, y.channel),
      .c_group = s.out_channels * y.channel,
      .a = gathered(x, pixel_axis(s.n, s.out, x, source, s.stride), of_x, true, s.in_channels, x.channel,
                    s.groups),
      .b = gathered(w, channel_axis(s.out_channels, w.image), of_w, false, s.out_channels, w.image, s.groups),
      .batch = s.groups,
      .m = s.n * s.out[0] * s.out[1],
      .n = s.out_channels,
      .k = s.in_channels * s.kernel[0] * s.kernel[1],
      .epilogue = epilogue,
      .path = s.groups > 1 && s.out_channels <= few_channels ? ConvPath::numbers : ConvPath::tiles,
      .along_i = y.channel > 1};
  if (!representable(p, s)) return report(ctx, not_supported);
  const size_t bytes = prepare(p, ctx);
  compute(p, bytes, bytes ? ctx.workspace(bytes) : nullptr, ctx);
}

template <class T>
void conv_backward_input(ImageView<T> dx, ImageView<const T> dy, ImageView<const T> w, ConvShape s,
                         Epilogue<T> epilogue, Context ctx) {
  const auto for_each_phase = [&](auto f) {
    for (int64_t row = 0; row < min_of(s.stride[0], s.in[0]); ++row) {
      for (int64_t col = 0; col < min_of(s.stride[1], s.in[1]); ++col) {
        ConvProblem<T> p = input_gradient(dx, dy, w, s, epilogue, row, col);
        if (!representable(p, s)) return report(ctx, not_supported);
        const size_t bytes = prepare(p, ctx);
        f(p, bytes);
      }
    }
  };
  size_t most = 0;
  for_each_phase([&](const auto&, size_t bytes) { most = max_of(most, bytes); });
  void* workspace = most ? ctx.workspace(most) : nullptr;
  for_each_phase([&](const auto& p, size_t bytes) { compute(p, bytes, workspace, ctx); });
}

template <class T>
void conv_backward_weight(ImageView<T> dw, ImageView<const T> dy, ImageView<const T> x, ConvShape s,
                          Context ctx) {
  const bool channels_last = x.channel == 1;
  const int64_t source[2] = {-s.padding[0], -s.padding[1]};
  const Axis of_x = tap_axis(channels_last, {}, {s.in_channels, x.channel},
                             {s.kernel[0], s.dilation[0] * x.row, s.dilation[0]},
                             {s.kernel[1], s.dilation[1] * x.column, 0, s.dilation[1]});
  const Axis of_dw = tap_axis(channels_last, {}, {s.in_channels, dw.channel}, {s.kernel[0], dw.row},
                              {s.kernel[1], dw.column});
  ConvProblem<T> p = {
      .c = dw.data,
      .out_i = channel_axis(s.out_channels, dw.image),
      .out_j = of_dw,
      .c_group = s.out_channels * dw.image,
      .a = gathered(dy, channel_axis(s.out_channels, dy.channel),
                    inner_pixel_axis(s.n, s.out, dy, origin, unit), false, s.out_channels, dy.channel,
                    s.groups),
      .b = gathered(x, of_x, pixel_axis(s.n, s.out, x, source, s.stride), true, s.in_channels, x.channel,
                    s.groups),
      .batch = s.groups,
      .m = s.out_channels,
      .n = s.in_channels * s.kernel[0] * s.kernel[1],
      .k = s.n * s.out[0] * s.out[1],
      .path = s.groups > 1 && s.out_channels <= few_channels ? ConvPath::long_sums : ConvPath::tiles};
  if (!representable(p, s)) return report(ctx, not_supported);
  const size_t bytes = prepare(p, ctx);
  compute(p, bytes, bytes ? ctx.workspace(bytes) : nullptr, ctx);
}

template <class T>
void planes_epilogue_backward(T* dz, T* db, const T* dy, const T* y, ClassShape s, Activation activation,
                              Context ctx) {
  if (s.classes == 0) return;
  // Runs enough to fill the device, of whole vectors.
  const int64_t size = s.outer * s.inner, wanted = max_of<int64_t>(1, 8 * sm_count(ctx) / s.classes);
  const int64_t per_run = ceil_div(max_of<int64_t>(4 * map_block, ceil_div(size, wanted)), 8) * 8;
  const int64_t runs = max_of<int64_t>(1, ceil_div(size, per_run));
  const bool vectors = s.inner % vec_width<T> == 0 && aligned(dy) && (!dz || (aligned(dz) && aligned(y)));
  double* partial = nullptr;
  if (db && runs > 1) {
    partial = static_cast<double*>(ctx.workspace(sizeof(double) * static_cast<size_t>(runs * s.classes)));
  }
  visit_invertible<Wide<T>>(activation.kind, [&](auto f) {
    launch(planes_backward_kernel<T, decltype(f)>, s.classes * runs, map_block, 0, ctx, dz, db, partial, dy,
           y, s, per_run, vectors, f);
  });
  if (partial) {
    launch(finish_columns_kernel<T>, grid_stride_blocks(s.classes, map_block, ctx), map_block, 0, ctx, db,
           partial, runs, s.classes);
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
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
