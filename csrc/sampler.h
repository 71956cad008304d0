// Which image is sample number n of a run; fastgan/data/sampler.py has the definition, and the same in NumPy.
#pragma once

#include <cstdint>

extern "C" {
// out[i]: the image of global sample number samples[i] >= 0. block: 0, or images that are shuffled among themselves.
void fastgan_image_order_cpu(uint64_t seed, int64_t count, int64_t block, const int64_t* samples, int64_t n,
                             int64_t* out);

// out[i]: whether it is shown mirrored.
void fastgan_flips_cpu(uint64_t seed, const int64_t* samples, int64_t n, uint8_t* out);
}
