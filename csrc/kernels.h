// The contract between csrc/ops (torch-facing) and the backends (torch-free).
//
// A backend is one constant of type Kernels: a table of function pointers, filled by one file per instruction
// set (csrc/cpu/table.cpp, compiled once per ISA). Kernels include no torch, allocate nothing (scratch comes
// from the Context, which may throw bad_alloc before anything is written), throw nothing, and own their
// edges: every size, 0 included, is legal. The kernels themselves are listed, each with its contract, in
// kernels.def.
//
// Rules that hold for every kernel:
//   - outputs come first, inputs are const, sizes are int64, hyper-parameters are one struct, Context is last;
//   - tensors are dense and row-major unless strides are passed; pointers may be unaligned (views);
//   - n == 0 (or any zero dimension) writes what the mathematics says (an empty sum is 0) and reads nothing;
//   - NaN in, NaN out, exactly where torch's own kernel does so;
//   - same inputs, same bits, whatever the number of threads: reductions run in a fixed order.
#pragma once
#include <cstddef>
#include <cstdint>

namespace minidl {

// The 16-bit floating-point types: storage only. Kernels compute in Wide<T>.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums over T, and statistics that a backward pass reads, are kept in.
template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<Half> {
  using type = float;
};
template <>
struct WideOf<BFloat16> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<T>::type;

// How a kernel reaches what it may not own: the stream it is ordered on and scratch memory.
struct Context {
  void* stream = nullptr;        // cudaStream_t; unused on the CPU
  int device = 0;                // index of the CUDA device; unused on the CPU
  int* error = nullptr;          // where a CUDA kernel leaves the code of a launch that failed
  bool allow_tf32 = false;       // may products of float be computed with 10-bit mantissas?
  bool allow_conv_tf32 = false;  // may convolutions?
  int threads = 1;               // upper bound on parallelism; must not change any result
  int64_t l2_bytes = 1 << 20;    // of a core's second-level cache; may change no result either
  // Uninitialised scratch of at least `bytes`, 64-byte aligned, on the backend's device, valid until the
  // kernel returns. At most one call per kernel, from the launching thread.
  void* (*workspace)(size_t bytes) = nullptr;
};

enum class ActivationKind { none, relu, leaky_relu, sigmoid, tanh, gelu, gelu_tanh, silu, softplus };

struct Activation {
  ActivationKind kind = ActivationKind::none;
  double alpha = 0;  // leaky_relu: negative_slope; softplus: beta
  double beta = 0;   // softplus: threshold
};

// A batch of matrices: element (i, j) of matrix s is data[s * batch_stride + i * row_stride + j *
// col_stride]. Any strides, 0 (expanded) included.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row_stride, col_stride;
  int64_t batch_stride = 0;
};

// What happens to a finished tile of C while it is still in registers (bias) or in L1: c = activation(c +
// bias).
template <class T>
struct Epilogue {
  const T* bias = nullptr;  // one per column of C, or nullptr
  Activation activation{};
};

enum class LossKind { mse, l1, smooth_l1, huber, bce, bce_with_logits };
enum class Reduction { none, mean, sum };  // numbered as torch numbers them

struct LossParams {
  LossKind kind;
  Reduction reduction;
  double beta = 1;  // smooth_l1: beta; huber: delta
};

// Logits of shape (outer, classes, inner): row (o, i) has its classes `inner` elements apart.
struct ClassShape {
  int64_t outer, classes, inner;
};

// Pictures (N, channels, height, width) at any strides. Quick where one of the strides `channel` and `column` is 1.
template <class T>
struct ImageView {
  T* data;
  int64_t image, channel, row, column;  // strides
  int64_t height, width;
};

// A convolution. Pairs are (height, width); what has one dimension has height 1. Output pixel o lies over the
// input pixels o * stride - padding + tap * dilation; beyond the picture, on either side, the input is 0.
struct ConvShape {
  int64_t n, groups, in_channels, out_channels;  // channels: of one group
  int64_t in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
};

// The target of a classification loss: exactly one of index and probability is set.
template <class T>
struct ClassTarget {
  const int64_t* index = nullptr;  // (outer, inner); values in [0, classes) or == ignore_index
  const T* probability = nullptr;  // (outer, classes, inner)
  const T* weight = nullptr;       // (classes), or nullptr for ones
  int64_t ignore_index = -100;
  double label_smoothing = 0;
};

// Features of shape (outer, channels, inner). inner == 1 is also how channels that lie last are written.
struct ChannelShape {
  int64_t outer, channels, inner;
};

// What follows the normalisation.
template <class T>
struct NormAffine {
  const T* w;  // (channels), or nullptr for ones
  const T* b;  // (channels), or nullptr for zeros
  bool relu;
};

// One parameter tensor of an optimizer step, with its gradient, state and step-dependent scalars.
// The state that an algorithm keeps is what its options say: a pointer is nullptr where the option is off.
template <class T>
struct OptimizerTensor {
  T* p;
  const T* g;
  T* state[3];  // sgd: {momentum_buffer}; rmsprop: {square_avg, momentum_buffer, grad_avg (centered)};
                // adam: {exp_avg, exp_avg_sq, max_exp_avg_sq (amsgrad)}
  int64_t n;
  double correction1, correction2;  // adam: 1 - beta1^t, sqrt(1 - beta2^t)
  bool first;                       // sgd: the momentum buffer is not read but becomes the gradient
  float* step =
      nullptr;  // CUDA only, on the device: t - 1; it is counted there, and the corrections follow from it
};

// A learning rate. On the device, CUDA only, it is `device`, which a captured graph reads anew.
struct LearningRate {
  double value;
  const double* device = nullptr;
  constexpr LearningRate(double v, const double* d = nullptr) : value(v), device(d) {}
  bool operator==(const LearningRate&) const = default;
};

// One of a list of tensors that a kernel walks as if they were one: n elements, in any order.
template <class T>
struct Span {
  T* x;
  int64_t n;
};

struct SgdParams {
  LearningRate lr;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
  bool operator==(const SgdParams&) const = default;
};

struct RmspropParams {
  LearningRate lr;
  double alpha, eps, weight_decay, momentum;
  bool maximize;
  bool operator==(const RmspropParams&) const = default;
};

struct AdamParams {
  LearningRate lr;
  double beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;  // decoupled: AdamW's weight decay
  bool operator==(const AdamParams&) const = default;
};

// One axis of a pooling. Output o has a window of inputs o * stride - padding + k * dilation, k < kernel, of
// which those outside [0, in) do not count. An adaptive window is [floor(o in / out), ceil((o + 1) in /
// out)): kernel is then a bound on its length, stride and dilation are 1, padding is 0.
struct PoolAxis {
  int64_t in, out, kernel, stride, padding, dilation;
  bool adaptive;
};

// Input (images, channels, h.in, w.in), output (images, channels, h.out, w.out), in that order in memory or,
// channels_last, with the channels innermost.
struct PoolShape {
  int64_t images, channels;
  PoolAxis h, w;
  bool channels_last;
};

// What an average divides by: `fixed`; where that is 0, the number of elements of the window, with those in
// the padding (but not beyond it) or without.
struct PoolDivisor {
  double fixed;
  bool count_padding;
};

// Where the maximum of a window was found; exactly one is set, with an element for each of the output.
struct PoolPosition {
  uint8_t* place;  // row * w.kernel + column in the window; h.kernel * w.kernel is at most 256
  int64_t* index;  // row * w.in + column in the image
};

// What dropout multiplies elements by: `scale`, or 0 where philox_word(seed, offset, element) < threshold.
struct DropoutParams {
  const int64_t* state;  // seed and offset, on the backend's device: a CUDA graph draws them anew
  uint32_t threshold;
  double scale;
};

// (images, channels, inner) with one random number a channel of an image, the element image * channels +
// channel, in that order in memory or, channels_last, with the channels innermost.
struct DropoutShape {
  int64_t images, channels, inner;
  bool channels_last;
};

// A walk over the same elements of two tensors, outermost dimension first; missing dimensions have size 1.
struct CopyShape {
  int64_t size[4], y_stride[4], x_stride[4];
};

template <class T>
struct KernelsOf {
#define KERNEL(name, ...) void (*name)(__VA_ARGS__);
#include "kernels.def"
#undef KERNEL
};

struct Kernels {
  const char* name = nullptr;  // "scalar", "avx2", "avx512", "neon", "cuda"
  KernelsOf<float> f32 = {};
  KernelsOf<double> f64 = {};
  KernelsOf<Half> f16 = {};  // CUDA only
  KernelsOf<BFloat16> bf16 = {};
};

}  // namespace minidl
