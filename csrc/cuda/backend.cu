#include "backend.h"

#include <cuda_runtime.h>

namespace minidl::cuda {

const char* error_name(int code) { return cudaGetErrorName(static_cast<cudaError_t>(code)); }
const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int synchronize(int device, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaSetDevice(device);
  if (cudaStreamIsCapturing(stream, &capture) == cudaSuccess && capture != cudaStreamCaptureStatusNone)
    return 0;
  cudaStreamSynchronize(stream);
  return cudaGetLastError();
}

}  // namespace minidl::cuda
