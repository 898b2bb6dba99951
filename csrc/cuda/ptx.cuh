// Instructions that C++ has no words for, each as one function: PTX under nvcc, its twin in C++ under
// MINIDL_SIM. Fragments of mma.sync as the PTX manual numbers them: lane = 4 g + t.
#pragma once
#include "launch.cuh"

namespace minidl::cuda {
namespace {

#ifdef MINIDL_SIM

template <class To, class From>
To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline float to_float(Half h) {
  const uint32_t sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 0x3ffu;
  if (exponent == 0) {
    const float v = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -v : v;
  }
  return bits_as<float>(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13);
}
inline Half to_half(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000u, u = bits & 0x7fffffffu;
  uint32_t h;
  if (u > 0x7f800000u) {
    h = 0x7fff;  // NaN
  } else if (u >= 0x477ff000u) {
    h = 0x7c00;  // 65520 and more
  } else if (u < 0x38800000u) {
    h = bits_as<uint32_t>(bits_as<float>(u) + 0.5f) -
        0x3f000000u;  // the sum rounds at 2^-24, as subnormals do
  } else {
    h = (u + 0xfffu + (u >> 13 & 1) - 0x38000000u) >> 13;
  }
  return {static_cast<uint16_t>(sign | h)};
}
inline float to_float(BFloat16 b) { return bits_as<float>(static_cast<uint32_t>(b.bits) << 16); }
inline BFloat16 to_bfloat16(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
// To the nearest number of 10 bits of mantissa, halves away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
}

// Copies 16 bytes from global to shared memory, the first `filled` of them, and zeros. Lands at the wait, as
// late as it may: who reads before finds NaN.
inline void copy_async_16(void* to, const void* from, unsigned filled) {
  sim::begin_copy({to, from, 16, filled, 0});
}
inline void copy_async_commit() { sim::end_group(); }
// Waits for all groups but the `left` latest.
template <int left>
void copy_async_wait() {
  for (sim::Copy copy; sim::next_landing(left, copy);) {
    std::memcpy(copy.to, copy.from, copy.filled);
    std::memset(static_cast<char*>(copy.to) + copy.filled, 0, copy.bytes - copy.filled);
  }
}

// Four 8 x 8 matrices of 16-bit elements: lane l passes the address of row l % 8 of matrix l / 8, and gets
// elements 2t and 2t + 1 of row g of each; of its transpose, for `transposed`.
template <bool transposed>
void load_matrix_x4(uint32_t (&r)[4], const void* row, MINIDL_SITE_ARGUMENT) {
  const int g = static_cast<int>(sim::lane()) / 4, t = static_cast<int>(sim::lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    if (transposed) {
      uint16_t pair[2];
      for (int j = 0; j < 2; ++j) {
        pair[j] =
            static_cast<const uint16_t*>(sim::shuffle(full_mask, row, 8 * i + 2 * t + j, {file, line}))[g];
      }
      r[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    } else {
      const auto* pair = static_cast<const uint16_t*>(sim::shuffle(full_mask, row, 8 * i + g, {file, line}));
      r[i] = pair[2 * t] | static_cast<uint32_t>(pair[2 * t + 1]) << 16;
    }
  }
}

// d += a b for a 16 x K and b K x 8, with K = 32 bytes / size of an element; d in float.
struct MmaOperands {
  const uint32_t *a, *b;
  float* d;
};
template <class T>
void unpack(float* to, uint32_t bits) {
  if constexpr (sizeof(T) == 4) {
    to[0] = bits_as<float>(bits & ~0x1fffu);
  } else {
    to[0] = to_float(T{static_cast<uint16_t>(bits)});
    to[1] = to_float(T{static_cast<uint16_t>(bits >> 16)});
  }
}
template <class T>
const char* resolve_mma(void* const lanes[32]) {
  constexpr int per = 4 / static_cast<int>(sizeof(T)), k = 8 * per;
  float a[16][k], b[k][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* o = static_cast<const MmaOperands*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) unpack<T>(&a[g + i % 2 * 8][t * per + i / 2 * k / 2], o->a[i]);
    for (int i = 0; i < 2; ++i) {
      float column[2];
      unpack<T>(column, o->b[i]);
      for (int j = 0; j < per; ++j) b[t * per + j + i * k / 2][g] = column[j];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const MmaOperands*>(lanes[lane])->d;
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < k; ++j) d[i] += a[g + i / 2 * 8][j] * b[j][2 * t + i % 2];
    }
  }
  return nullptr;
}
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], MINIDL_SITE_ARGUMENT) {
  MmaOperands operands{a, b, d};
  sim::meet(full_mask, &operands, resolve_mma<T>, false, {file, line});
}

#else

MINIDL_DEVICE float to_float(Half h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
  return x;
}
MINIDL_DEVICE Half to_half(float x) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
MINIDL_DEVICE float to_float(BFloat16 b) { return __uint_as_float(static_cast<uint32_t>(b.bits) << 16); }
MINIDL_DEVICE BFloat16 to_bfloat16(float x) {
  BFloat16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(x));
  return b;
}
MINIDL_DEVICE uint32_t to_tf32(float x) {
  uint32_t u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(x));
  return u;
}

MINIDL_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
MINIDL_DEVICE void copy_async_16(void* to, const void* from, unsigned filled) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(filled)
               : "memory");
}
MINIDL_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
MINIDL_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

template <bool transposed>
MINIDL_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

#define MINIDL_MMA(shape_and_types)                              \
  asm volatile("mma.sync.aligned." shape_and_types               \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
               "{%0, %1, %2, %3};"                               \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class T>
MINIDL_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
MINIDL_DEVICE void mma<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MINIDL_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
MINIDL_DEVICE void mma<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MINIDL_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
MINIDL_DEVICE void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MINIDL_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef MINIDL_MMA

#endif

}  // namespace
}  // namespace minidl::cuda
