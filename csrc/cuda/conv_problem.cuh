// A convolution as a product C(i, j) = sum over k of A(i, k) B(j, k) whose operands are read where they lie in their
// tensors.
//
// Both indices of an operand are an Axis: numbers with three digits (image, row and column of a pixel; channel, row
// and column of a tap of the kernel), each of which adds to the offset in memory and to the row and column in the
// picture. An element lies at the sum of the places of its two indices, and is 0 where that is outside the picture.
// So each index is taken apart once, by one thread, into a table in shared memory.
#pragma once
#include "vec.cuh"

namespace minidl::cuda {
namespace {

// n / count by a multiplication, for n < 2^31: Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994.
struct Divisor {
  uint32_t count, magic, shift;

  MINIDL_DEVICE int quotient(int n) const {
    const auto u = static_cast<uint32_t>(n);
    return static_cast<int>((static_cast<uint32_t>(uint64_t{u} * magic >> 32) + u) >> shift);
  }
};
inline Divisor divisor_of(int64_t count) {
  const uint64_t d = static_cast<uint64_t>(max_of<int64_t>(count, 1));
  uint32_t shift = 0;
  while (uint64_t{1} << shift < d) ++shift;
  const uint64_t magic = (uint64_t{1} << 32) * ((uint64_t{1} << shift) - d) / d + 1;
  return {static_cast<uint32_t>(d), static_cast<uint32_t>(magic), shift};
}

struct Place {
  int64_t offset;
  int row, col;
};
// Rows and columns stay below it; with any other place, a row of -far is outside of every picture.
constexpr int far = 1 << 30, most_rows = far / 4;

struct Digit {
  int64_t count, stride = 0, row = 0, col = 0;
};

struct Axis {
  Place first;
  int64_t stride[3];  // of the digits, the slowest first
  int row[3], col[3];
  Divisor count[3];

  // Of an index below `end`; else outside.
  MINIDL_DEVICE Place at(int64_t index_, int64_t end_) const {
    // The launchers have seen to it that they fit.
    const int index = static_cast<int>(index_), end = static_cast<int>(end_);
    if (index >= end) return {0, -far, 0};
    const int high = count[2].quotient(index);
    const int c = index - high * static_cast<int>(count[2].count), a = count[1].quotient(high);
    const int b = high - a * static_cast<int>(count[1].count);
    return {first.offset + a * stride[0] + b * stride[1] + c * stride[2],
            first.row + a * row[0] + b * row[1] + c * row[2],
            first.col + a * col[0] + b * col[1] + c * col[2]};
  }
  MINIDL_DEVICE Place next(const Place& place, int digit) const {
    return {place.offset + stride[digit], place.row + row[digit], place.col + col[digit]};
  }
};
inline Axis axis_of(Place first, Digit slow, Digit middle, Digit fast) {
  // Digits that are always 0 come first, so that the last one says how neighbours lie.
  if (fast.count == 1) std::swap(middle, fast);
  if (middle.count == 1) std::swap(slow, middle);
  if (fast.count == 1) std::swap(middle, fast);
  Axis axis = {.first = first};
  int d = 0;
  for (const Digit& digit : {slow, middle, fast}) {
    axis.stride[d] = digit.count == 1 ? 0 : digit.stride;
    axis.row[d] = static_cast<int>(digit.row);
    axis.col[d] = static_cast<int>(digit.col);
    axis.count[d++] = divisor_of(digit.count);
  }
  return axis;
}

// X(i, k) of all groups, `group` elements apart.
template <class T>
struct Gathered {
  const T* data;
  Axis i, k;
  int height, width;
  int64_t group;
  bool along_k;  // whether elements lie nearer to one another along k than along i

  MINIDL_DEVICE bool inside(const Place& x, const Place& y) const {
    return static_cast<unsigned>(x.row + y.row) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(x.col + y.col) < static_cast<unsigned>(width);
  }
  // i, of a group.
  MINIDL_DEVICE Place row_of(int64_t of_group, int64_t index, int64_t end) const {
    Place place = i.at(index, end);
    place.offset += of_group * group;
    return place;
  }
  MINIDL_DEVICE T read(const Place& x, const Place& y) const {
    return inside(x, y) ? data[x.offset + y.offset] : T{};
  }
};

// tiles: of C, a block each. numbers: groups of few channels would leave most of a tile empty, so a thread for each
// number of C; long_sums: or a block, where k is long.
enum class ConvPath { tiles, numbers, long_sums };

template <class T>
struct ConvProblem {
  T* c;
  Axis out_i, out_j;
  int64_t c_group;
  Gathered<T> a, b;
  int64_t batch, m, n, k;  // batch: groups
  Epilogue<T> epilogue{};  // bias: n for each group
  int64_t splits = 1, k_per_split = 0;
  Wide<T>* partial = nullptr;  // as in Problem
  ConvPath path = ConvPath::tiles;
  bool large = false;    // tiles of 128 x 128, not 64 x 64
  bool along_i = false;  // of numbers, neighbouring threads take neighbouring rows, not columns

  MINIDL_DEVICE T* at(int64_t group, int64_t i, int64_t j) const {
    return c + group * c_group + out_i.at(i, m).offset + out_j.at(j, n).offset;
  }
};

}  // namespace
}  // namespace minidl::cuda
