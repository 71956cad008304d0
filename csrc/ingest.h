// Images as they are stored to images as networks take them; fastgan/kernels/ingest.py has the definition, and the same
// in PyTorch.
#pragma once

#include "portable.h"

namespace fastgan {

enum class IngestType : int { kFloat = 0, kBFloat16 = 1, kHalf = 2, kByte = 3 };  // bytes: as stored, on the CPU only

// out[n, h, w, c] = value(pixels[n, h, w', c]) with w' = width - 1 - w where flip[n], else w. flip: null for nowhere.
struct Ingest {
  const uint8_t* pixels;
  const uint8_t* flip;  // one bool per sample
  int64_t samples, height, width, channels;
  void* out;
};

// The same of images that lie anywhere in an array of `count`: sample i is image rows[i]. `to.pixels` is not looked at.
struct Gather {
  const uint8_t* images;
  int64_t count;
  const int64_t* rows;   // [to.samples]
  const uint32_t* sums;  // CRC-32 of each image; null: they are not compared
  uint8_t* seen;         // [count] whether an image was compared before, and need not be again; null: always compare
  Ingest to;
};

// CRC-32 as zlib has it.
uint32_t crc32_of(const uint8_t* data, int64_t size);

// Correctly rounded on every processor. A product with 1 / 127.5 would be faster and differ in last bits.
FASTGAN_HD float ingest_value(uint8_t pixel) { return (float(pixel) - 127.5f) / 127.5f; }

FASTGAN_HD void ingest_store(float value, float* to) { *to = value; }
FASTGAN_HD void ingest_store(float value, BFloat16* to) { *to = BFloat16::from(value); }
FASTGAN_HD void ingest_store(float value, Half* to) { *to = Half::from(value); }

}  // namespace fastgan

extern "C" {
void fastgan_ingest_cpu(const fastgan::Ingest* ingest, fastgan::IngestType type, int threads);

// By the calling thread alone. Returns the first sample whose row does not exist, whose image differs from its sum, or
// whose memory is gone with the file that was mapped there, and writes no later ones; -1 where all are good.
int64_t fastgan_gather_cpu(const fastgan::Gather* gather, fastgan::IngestType type);

// CRC-32 as zlib has it; -1 where the memory is gone with the file that was mapped there.
int64_t fastgan_crc32(const uint8_t* data, int64_t size);

// Queues on `stream` of `device`; returns a cudaError_t.
int fastgan_ingest_cuda(const fastgan::Ingest* ingest, fastgan::IngestType type, int device, void* stream);
}
