#include "ingest.h"

#include <algorithm>

namespace {

using namespace fastgan;

constexpr int64_t kShare = int64_t(1) << 15;  // elements that are worth a thread's turn

// Whoever does not read whole vectors looks up its values: there are only 256 of them.
template <typename T>
struct Table {
  T at[256];
  Table() {
    for (int i = 0; i < 256; ++i) ingest_store(ingest_value(uint8_t(i)), &at[i]);
  }
};

FASTGAN_CLONES void in_order(const uint8_t* __restrict__ from, int64_t n, const Table<float>&, float* __restrict__ to) {
  for (int64_t i = 0; i < n; ++i) to[i] = ingest_value(from[i]);
}

// Rounding and packing would take longer than the table. Four at a time: a loop of single ones gets vectorised, which
// takes twice as long, because the vectors are filled one element after the other.
template <typename T>
void in_order(const uint8_t* __restrict__ from, int64_t n, const Table<T>& table, T* __restrict__ to) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    uint64_t four = 0;
    for (int k = 0; k < 4; ++k) four |= uint64_t(table.at[from[i + k]].bits) << (16 * k);
    memcpy(to + i, &four, sizeof(four));
  }
  for (; i < n; ++i) to[i] = table.at[from[i]];
}

// The last pixel first. kChannels: 0 for any number, else `channels`.
template <int kChannels, typename T>
void reversed(const uint8_t* __restrict__ row, int64_t width, int64_t channels, const Table<T>& table,
              T* __restrict__ to) {
  const int64_t step = kChannels ? kChannels : channels;
  const uint8_t* last = row + (width - 1) * step;
  for (int64_t w = 0; w < width; ++w, last -= step, to += step)
    for (int64_t c = 0; c < step; ++c) to[c] = table.at[last[c]];
}

template <typename T>
void run(const Ingest& ingest, int threads) {
  static const Table<T> table;
  const int64_t width = ingest.width, channels = ingest.channels, row = width * channels;
  if (ingest.samples == 0 || ingest.height == 0 || row == 0) return;
  const int64_t rows = std::min(std::max<int64_t>(1, kShare / row), ingest.height);  // of a sample, in one turn
  const int64_t parts = (ingest.height + rows - 1) / rows;
#pragma omp parallel for schedule(static) num_threads(threads) \
    if (threads > 1 && ingest.samples * ingest.height * row > kShare)
  for (int64_t i = 0; i < ingest.samples * parts; ++i) {
    const int64_t n = i / parts, first = i % parts * rows, some = std::min(rows, ingest.height - first);
    const int64_t begin = (n * ingest.height + first) * row;
    const uint8_t* from = ingest.pixels + begin;
    T* to = static_cast<T*>(ingest.out) + begin;
    if (!ingest.flip || !ingest.flip[n]) {
      in_order(from, some * row, table, to);
      continue;
    }
    for (int64_t h = 0; h < some; ++h, from += row, to += row)
      if (channels == 1) reversed<1>(from, width, 1, table, to);
      else if (channels == 3) reversed<3>(from, width, 3, table, to);
      else reversed<0>(from, width, channels, table, to);
  }
}

}  // namespace

void fastgan_ingest_cpu(const Ingest* ingest, IngestType type, int threads) {
  switch (type) {
    case IngestType::kFloat: return run<float>(*ingest, threads);
    case IngestType::kBFloat16: return run<BFloat16>(*ingest, threads);
    case IngestType::kHalf: return run<Half>(*ingest, threads);
  }
}
