// The device that a launch is for.
#pragma once

#include <cuda_runtime.h>

namespace fastgan {

// Makes `device` the current one and puts the former one back. The CUDA runtime is linked statically and shares nothing
// with torch's but the driver, whose current context both of them use.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    status = cudaGetDevice(&before_);
    changed_ = status == cudaSuccess && before_ != device;
    if (changed_) status = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t status;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace fastgan
