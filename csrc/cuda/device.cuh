// The device that a launch is for.
#pragma once

#include <cuda_runtime.h>

namespace fastgan {

// Makes `device` the current one and puts the former one back. The runtime is linked statically and shares nothing with
// torch's but the driver, whose current context both of them use.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    status = cudaGetDevice(&before_);
    if (status == cudaSuccess && before_ != device) status = cudaSetDevice(device);
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t status;

 private:
  int before_ = 0;
};

}  // namespace fastgan
