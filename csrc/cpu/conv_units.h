// How a convolution is cut up: a unit is some output pixels, a few images or a band of rows; a slice is some
// output channels, as wide as a panel of weights. A thread packs the band of the input under a unit once and
// keeps it in L2 while the slices pass over it.
#pragma once
#include "conv.h"

namespace minidl::MINIDL_ISA {
namespace {

// Output pixels and the input pixels under them. Pairs: height, width. Output pixel i of the grid is pixel
// first + i * step of its picture; its tap t lies at pixel source + i * advance + t * spacing of the input.
struct Grid {
  int64_t count[2], first[2], step[2];
  int64_t taps[2], source[2], advance[2], spacing[2];

  int64_t pixels() const { return count[0] * count[1]; }
  // Input rows (d = 0) or columns under n output rows; with one tap none of those between two outputs.
  int64_t extent(int d, int64_t n) const {
    return taps[d] == 0 ? 0 : (n - 1) * packed_advance(d) + (taps[d] - 1) * spacing[d] + 1;
  }
  int64_t packed_step(int d) const { return taps[d] == 1 ? advance[d] : 1; }
  int64_t packed_advance(int d) const { return taps[d] == 1 ? 1 : advance[d]; }
};

// A part of the output: images x rows x columns of the grid.
struct Unit {
  int64_t image, images, row, rows, column, columns;
  int64_t pixels() const { return images * rows * columns; }
};

constexpr int64_t unit_pixels_least = 96;  // small images are taken together, up to so many pixels

// How a grid is cut into units, of at most so many pixels, whose bands fit a quarter of L2 if they can.
template <class T>
struct Units {
  int64_t n;
  Grid grid;
  int64_t images = 1, rows, columns;  // of a unit

  Units(int64_t n_, const Grid& g, int64_t channels, int64_t most, const Context& ctx) : n(n_), grid(g) {
    const int64_t budget = ctx.l2_bytes / 4 / static_cast<int64_t>(sizeof(T)) / max_of(channels, 1);
    const auto fits = [&](int64_t r, int64_t c) {
      return r * c <= most && grid.extent(0, r) * grid.extent(1, c) <= budget;
    };
    rows = max_of(grid.count[0], 1);
    columns = max_of(grid.count[1], 1);
    while (rows > 1 && !fits(rows, columns)) rows = ceil_div(rows, 2);
    while (columns > 1 && !fits(rows, columns)) columns = ceil_div(columns, 2);
    if (rows == grid.count[0] && columns == grid.count[1]) {
      const int64_t wanted = ceil_div(unit_pixels_least, max_of(grid.pixels(), 1));
      const int64_t fitting = budget / max_of(grid.extent(0, rows) * grid.extent(1, columns), 1);
      images = max_of(1, min_of(min_of(wanted, fitting), n));
    }
  }
  int64_t across() const { return ceil_div(grid.count[1], columns); }
  int64_t down() const { return ceil_div(grid.count[0], rows); }
  int64_t count() const { return grid.pixels() == 0 ? 0 : ceil_div(n, images) * down() * across(); }
  Unit at(int64_t u) const {
    const int64_t c = u % across() * columns, r = u / across() % down() * rows,
                  i = u / across() / down() * images;
    return {
        i, min_of(images, n - i), r, min_of(rows, grid.count[0] - r), c, min_of(columns, grid.count[1] - c)};
  }
  int64_t most_pixels() const { return images * rows * columns; }
  // The band under a unit, in pixels: of one image, and of a row of it. The same for every unit.
  int64_t pitch() const { return grid.extent(1, columns); }
  int64_t band() const { return grid.extent(0, rows) * pitch(); }
};

// Output channels that one panel of weights yields, and the input channels they are made from. Depthwise,
// groups of one channel each, a panel takes as many groups as it has lanes.
struct Slice {
  int64_t group, in_first, in_channels, out_first, columns;
};

struct Slices {
  int64_t groups, in_channels, out_channels;  // of one group
  bool depthwise;
  int64_t lanes;  // of a panel's row

  Slices(int64_t groups_, int64_t in, int64_t out, int64_t width, int64_t panel)
      : groups(groups_), in_channels(in), out_channels(out), depthwise(groups > 1 && in == 1 && out == 1) {
    lanes = min_of(round_up(depthwise ? groups : out, width), panel);
  }
  int64_t per_group() const { return ceil_div(depthwise ? groups : out_channels, lanes); }
  int64_t count() const { return depthwise ? per_group() : groups * per_group(); }
  Slice at(int64_t s) const {
    if (depthwise) {
      const int64_t columns = min_of(lanes, groups - s * lanes);
      return {s, s * lanes, columns, s * lanes, columns};
    }
    const int64_t g = s / per_group(), first = s % per_group() * lanes;
    return {g, g * in_channels, in_channels, g * out_channels + first, min_of(lanes, out_channels - first)};
  }
  int64_t sums() const { return depthwise ? 1 : in_channels; }       // input channels that a column sums over
  int64_t pixel() const { return depthwise ? lanes : in_channels; }  // numbers of a pixel of the band
};

// The input under a unit -> one packed image after another, zeros around the picture.
template <class T>
void pack_band(T* band, const Units<T>& units, const Unit& u, const Slices& slices, const Slice& slice,
               const ImageView<const T>& x) {
  const Grid& g = units.grid;
  const int64_t rows = g.extent(0, u.rows), pixel = slices.pixel();
  for (int64_t i = 0; i < u.images; ++i) {
    const T* picture = x.data + (u.image + i) * x.image + slice.in_first * x.channel;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t h = g.source[0] + u.row * g.advance[0] + r * g.packed_step(0);
      const T* row = h >= 0 && h < x.height ? picture + h * x.row : nullptr;
      pack_pixels(band + (i * units.band() + r * units.pitch()) * pixel, pixel,
                  PixelRow<T>{row, x.channel, x.column, x.width, g.source[1] + u.column * g.advance[1],
                              g.packed_step(1), g.extent(1, u.columns), slice.in_channels});
    }
  }
}

// offset[(tap, channel)] from a pixel's first tap in a band.
template <class T>
void tap_offsets(int64_t* offset, const Units<T>& units, const Slices& slices) {
  const Grid& g = units.grid;
  for (int64_t t = 0; t < g.taps[0] * g.taps[1]; ++t) {
    const int64_t pixel = t / g.taps[1] * g.spacing[0] * units.pitch() + t % g.taps[1] * g.spacing[1];
    for (int64_t c = 0; c < slices.sums(); ++c) *offset++ = pixel * slices.pixel() + c;
  }
}

// Where the pixels of a unit lie, numbered as they lie in memory: in its band, and in the output beyond its
// first. Kept while units of the same shape come.
struct PixelTable {
  int64_t *in, *out;
  Unit shape{};

  template <class T>
  void fill(const Units<T>& units, const Unit& u, int64_t pixel, const ImageView<T>& y) {
    if (u.images == shape.images && u.rows == shape.rows && u.columns == shape.columns) return;
    shape = u;
    const Grid& g = units.grid;
    int64_t q = 0;
    for (int64_t i = 0; i < u.images; ++i) {
      for (int64_t r = 0; r < u.rows; ++r) {
        for (int64_t c = 0; c < u.columns; ++c, ++q) {
          in[q] =
              (i * units.band() + r * g.packed_advance(0) * units.pitch() + c * g.packed_advance(1)) * pixel;
          out[q] = i * y.image + r * g.step[0] * y.row + c * g.step[1] * y.column;
        }
      }
    }
  }
};

}  // namespace
}  // namespace minidl::MINIDL_ISA
