#include "device.h"

#include "device.cuh"

namespace {
__global__ void probe() {}
}  // namespace

int fastgan_cuda_status(int device) {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && device >= count) status = cudaErrorInvalidDevice;
  if (status == cudaSuccess) {
    const fastgan::OnDevice on(device);
    cudaFuncAttributes attributes;  // asking for them loads the code, which fails where there is none for the device
    status = on.status == cudaSuccess ? cudaFuncGetAttributes(&attributes, probe) : on.status;
  }
  cudaGetLastError();  // the answer is the return value; leave no error behind
  return status;
}

const char* fastgan_cuda_error_name(int status) { return cudaGetErrorName(cudaError_t(status)); }
const char* fastgan_cuda_error_text(int status) { return cudaGetErrorString(cudaError_t(status)); }
