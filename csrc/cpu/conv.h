// The parts of a convolution: the microkernel, and the packing that feeds it and takes its results.
//
// Forward, dx and dw are the same product, a tile of rows x lanes summed over k:
//
//               rows            lanes              k
//   forward     output pixels   output channels    taps x input channels
//   dx          input pixels    input channels     taps x output channels
//   dw          taps x inputs   output channels    output pixels
//
// Its left operand is never built (that would be im2col): a row is a pointer into a packed band of the
// picture, padded and with the channels of a pixel side by side, and a table says how far step k lies from
// it. Neither stride, dilation, padding nor the number of channels is known to the microkernel.
#pragma once
#include "gemm.h"
#include "kernels.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int conv_rows = max_rows[max_vectors];  // a tile's: as many pointers as there are registers for

// c[i][j] (+)= sum over p of a[i][offset[p]] * b[p][j] on a tile of conv_rows x (vectors * width), b's and
// c's rows as long. Depthwise, where lane j of the output is lane j of the input: a[i][offset[p] + j] in
// place of it. The sum is added to init[j], or, where that is nullptr, to c.
template <class T>
using ConvMicrokernel = void (*)(int64_t kc, const T* const* a, const int64_t* offset, const T* b, T* c,
                                 int64_t ldc, const T* init);

template <bool depthwise, class T>
MINIDL_INLINE Vec<T> left(const T* p, int j) {
  if constexpr (depthwise) return Vec<T>::load(p + j);
  return Vec<T>(*p);
}

template <class T, int vectors, bool depthwise>
void conv_microkernel(int64_t kc, const T* const* a, const int64_t* offset, const T* b, T* c, int64_t ldc,
                      const T* init) {
  constexpr int w = Vec<T>::width, row = vectors * w, ahead = 4;
  // A narrow tile sums every second step, or every fourth, by itself: no addition then waits for the one
  // before, and shorter sums round less.
  constexpr int sums = max_vectors / vectors;
  Vec<T> acc[sums][conv_rows][vectors];  // zeros; an assignment here would cost the compiler its registers
  const auto step = [&](int64_t p, auto sum) {
    const int64_t at = offset[p];
    Vec<T> bv[vectors];
    unroll<vectors>([&](auto j) { bv[j] = Vec<T>::load(b + j * w); });
    unroll<vectors>([&](auto j) { __builtin_prefetch(b + ahead * row + j * w); });
    unroll<conv_rows>([&](auto i) {
      unroll<vectors>(
          [&](auto j) { acc[sum][i][j] = fmadd(left<depthwise>(a[i] + at, j * w), bv[j], acc[sum][i][j]); });
    });
    b += row;
  };
  int64_t p = 0;
  for (; p + sums <= kc; p += sums) unroll<sums>([&](auto sum) { step(p + sum, sum); });
  for (; p < kc; ++p) step(p, Index<0>{});

  unroll<vectors>([&](auto j) {
    unroll<sums - 1>([&](auto sum) {
      unroll<conv_rows>([&](auto i) { acc[0][i][j] = acc[0][i][j] + acc[sum + 1][i][j]; });
    });
    if (init) {
      const Vec<T> add = Vec<T>::load(init + j * w);
      unroll<conv_rows>([&](auto i) { acc[0][i][j] = acc[0][i][j] + add; });
    } else {
      unroll<conv_rows>([&](auto i) { acc[0][i][j] = acc[0][i][j] + Vec<T>::load(c + i * ldc + j * w); });
    }
    unroll<conv_rows>([&](auto i) { acc[0][i][j].store(c + i * ldc + j * w); });
  });
}

template <class T, int vectors = max_vectors>
ConvMicrokernel<T> conv_microkernel_for(int64_t lanes, bool depthwise) {
  if constexpr (vectors > 1) {
    if (lanes < vectors * Vec<T>::width) return conv_microkernel_for<T, vectors - 1>(lanes, depthwise);
  }
  return depthwise ? conv_microkernel<T, vectors, true> : conv_microkernel<T, vectors, false>;
}

template <class T>
void copy_run(T* dst, const T* src, int64_t n) {
  for_lanes<T>(0, n, [&](int64_t i, int64_t lanes, auto tag) {
    store_lanes(load_lanes(src + i, lanes, tag), dst + i, lanes, tag);
  });
}
template <class T>
void fill_zero(T* dst, int64_t n) {
  for_lanes<T>(0, n, [&](int64_t i, int64_t lanes, auto tag) { store_lanes(Vec<T>(), dst + i, lanes, tag); });
}

// dst[j * dst_row + i] = src[i * src_row + j] for i < rows, j < columns: squares, transposed in registers.
template <class T,
          class Whole>  // not inlined: the loop around it would keep a pointer for each row of a square
__attribute__((noinline)) void transpose_square(T* dst, int64_t dst_row, const T* src, int64_t src_row,
                                                int64_t rows, int64_t columns, Whole) {
  constexpr int w = Vec<T>::width;
  Vec<T> square[w];
  unroll<w>([&](auto q) {
    square[q] = Vec<T>();
    if (Whole::value || q < rows) square[q] = load_lanes(src + q * src_row, columns, Whole{});
  });
  transpose(square);
  unroll<w>([&](auto q) {
    if (Whole::value || q < columns) store_lanes(square[q], dst + q * dst_row, rows, Whole{});
  });
}
template <class T>
void transpose_to(T* dst, int64_t dst_row, const T* src, int64_t src_row, int64_t rows, int64_t columns) {
  constexpr int64_t w = Vec<T>::width;
  for (int64_t j = 0; j < columns; j += w) {
    for (int64_t i = 0; i < rows; i += w) {
      T* out = dst + j * dst_row + i;
      const T* in = src + i * src_row + j;
      if (rows - i >= w && columns - j >= w) {
        transpose_square(out, dst_row, in, src_row, w, w, Full{});
      } else {
        transpose_square(out, dst_row, in, src_row, min_of(w, rows - i), min_of(w, columns - j), Ragged{});
      }
    }
  }
}

// A row of pixels: `count` of them, `step` columns apart from column `first` on, `channels` numbers each.
// dst gets them `pixel` elements apart; columns outside [0, width) and elements beyond `channels` are 0.
template <class T>
struct PixelRow {
  const T* src;             // column 0, nullptr for a row outside the picture
  int64_t channel, column;  // strides
  int64_t width, first, step, count, channels;
};

template <class T>
void pack_pixels(T* dst, int64_t pixel, const PixelRow<T>& r) {
  const auto inside = [&](int64_t column) {  // the first of the pixels at or beyond a column
    return min_of(max_of(ceil_div(max_of(column - r.first, 0), r.step), 0), r.count);
  };
  const int64_t begin = r.src ? inside(0) : r.count, end = r.src ? inside(r.width) : r.count;
  fill_zero(dst, begin * pixel);
  fill_zero(dst + end * pixel, (r.count - end) * pixel);
  if (begin >= end) return;
  if (pixel != r.channels) fill_zero(dst + begin * pixel, (end - begin) * pixel);
  dst += begin * pixel;
  const T* src = r.src + (r.first + begin * r.step) * r.column;
  const int64_t count = end - begin, stride = r.step * r.column;
  if (stride == pixel && pixel == r.channels && (r.channel == 1 || r.channels == 1)) {
    copy_run(dst, src, count * pixel);
  } else if (r.channel == 1) {
    for (int64_t j = 0; j < count; ++j) copy_run(dst + j * pixel, src + j * stride, r.channels);
  } else if (stride == 1) {
    transpose_to(dst, pixel, src, r.channel, r.channels, count);
  } else {
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t c = 0; c < r.channels; ++c) dst[j * pixel + c] = src[j * stride + c * r.channel];
    }
  }
}

// Asks for the lines that unpack_pixels will write: a few in each of many planes, which no hardware sees
// coming. They arrive while the microkernel runs (64x3x32x32->64 takes 6.1 ms instead of 7.8).
template <class T>
void prefetch_planes(T* dst, const int64_t* at, int64_t channel, int64_t count, int64_t channels) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t q = 0; q < count; q += line) __builtin_prefetch(dst + at[q] + c * channel, 1);
  }
}

// The way back: pixels that lie `pixel` elements apart in src go to at[0], at[1], ... of dst.
template <class T>
void unpack_pixels(T* dst, const int64_t* at, int64_t channel, const T* src, int64_t pixel, int64_t count,
                   int64_t channels) {
  if (channel == 1) {
    for (int64_t q = 0; q < count; ++q) copy_run(dst + at[q], src + q * pixel, channels);
    return;
  }
  for (int64_t q = 0; q < count;) {  // runs of neighbours, each transposed
    int64_t end = q + 1;
    while (end < count && at[end] == at[end - 1] + 1) ++end;
    if (end - q > 1) {
      transpose_to(dst + at[q], channel, src + q * pixel, pixel, end - q, channels);
    } else {
      for (int64_t c = 0; c < channels; ++c) dst[at[q] + c * channel] = src[q * pixel + c];
    }
    q = end;
  }
}

// The weights of one column of a product: `channels` x taps[0] x taps[1] of them, any strides; from one
// column to the next `column` elements. As k runs in the microkernel: row (tap, channel) of a packed panel.
template <class T>
struct WeightView {
  T* data;
  int64_t column, channel, tap[2];
  int64_t channels, taps[2];

  bool taps_contiguous() const {
    return (taps[1] == 1 || tap[1] == 1) && (taps[0] == 1 || tap[0] == taps[1]);
  }
  bool taps_reversed() const {
    return (taps[1] == 1 || tap[1] == -1) && (taps[0] == 1 || tap[0] == -taps[1]);
  }
  // f(run, k, k_step): the memory from `run` on, `length` long, is rows k, k + k_step, ... of a panel.
  template <class F>
  void runs(F f) const {
    const int64_t count = taps[0] * taps[1];
    if (channel == 1) {
      for (int64_t t = 0; t < count; ++t) {
        f(data + t / taps[1] * tap[0] + t % taps[1] * tap[1], channels, t * channels, int64_t{1});
      }
    } else if (count > 1 && taps_contiguous()) {
      for (int64_t c = 0; c < channels; ++c) f(data + c * channel, count, c, channels);
    } else if (count > 1 && taps_reversed()) {
      for (int64_t c = 0; c < channels; ++c) {
        f(data + c * channel - (count - 1), count, (count - 1) * channels + c, -channels);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < count; ++t) {
          f(data + c * channel + t / taps[1] * tap[0] + t % taps[1] * tap[1], int64_t{1}, t * channels + c,
            int64_t{1});
        }
      }
    }
  }
};

// `columns` columns of weights -> a panel whose rows are `lanes` long, the lanes beyond the columns 0.
template <class T>
void pack_weights(T* panel, int64_t lanes, const WeightView<const T>& w, int64_t columns) {
  if (lanes != columns) fill_zero(panel, w.channels * w.taps[0] * w.taps[1] * lanes);
  w.runs([&](const T* run, int64_t length, int64_t k, int64_t k_step) {
    if (w.column == 1) {
      for (int64_t i = 0; i < length; ++i) copy_run(panel + (k + i * k_step) * lanes, run + i, columns);
    } else if (length == 1) {
      for (int64_t j = 0; j < columns; ++j) panel[k * lanes + j] = run[j * w.column];
    } else {
      transpose_to(panel + k * lanes, k_step * lanes, run, w.column, columns, length);
    }
  });
}
template <class T>
void unpack_weights(const WeightView<T>& w, const T* panel, int64_t lanes, int64_t columns) {
  w.runs([&](T* run, int64_t length, int64_t k, int64_t k_step) {
    if (length == 1) {
      for (int64_t j = 0; j < columns; ++j) run[j * w.column] = panel[k * lanes + j];
    } else {
      transpose_to(run, w.column, panel + k * lanes, k_step * lanes, length, columns);
    }
  });
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
