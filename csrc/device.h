// What the CUDA part says about the machine.
#pragma once

extern "C" {
// 0 when kernels of this build run on `device`, else a cudaError_t: no device, too old a driver, no code for it.
int fastgan_cuda_status(int device);

// The name and the meaning of a cudaError_t.
const char* fastgan_cuda_error_name(int status);
const char* fastgan_cuda_error_text(int status);
}
