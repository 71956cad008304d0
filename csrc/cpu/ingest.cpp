#include "ingest.h"

#include <algorithm>

#include "faults.h"
#include "ingest_rows.h"

namespace {

using namespace fastgan;

constexpr int64_t kShare = int64_t(1) << 15;  // elements that are worth a thread's turn
constexpr int64_t kPiece = 512, kTurns = 2048;  // bytes between two looks at the next image; of flipped ones
constexpr int64_t kLine = 64, kAligned = 32;
constexpr int64_t kTooLarge = int64_t(2) << 20;  // bytes of a batch

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
      in_order<false>(from, some * row, table, to);
      continue;
    }
    reversed<false>(from, some, width, channels, table, to);
  }
}

// Images lie anywhere, where no processor foresees them: while one is read, the same places of the next are asked for.
void ask_for(const uint8_t* piece, int64_t size) {
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(piece + i);
}

// Whether the image is as it was packed, compared once.
bool is_good(const Gather& gather, int64_t image, int64_t size) {
  if (!gather.sums || (gather.seen && gather.seen[image])) return true;
  if (crc32_of(gather.images + image * size, size) != gather.sums[image]) return false;
  if (gather.seen) gather.seen[image] = 1;
  return true;
}

// at: the sample that it is at.
template <bool kPast, typename T>
int64_t run(const Gather& gather, volatile int64_t& at) {
  static const Table<T> table;
  const Ingest& to = gather.to;
  const int64_t row = to.width * to.channels, size = to.height * row;
  for (int64_t n = 0; n < to.samples; ++n) {
    at = n;
    const int64_t image = gather.rows[n], after = gather.rows[std::min(n + 1, to.samples - 1)];
    if (image < 0 || image >= gather.count || !is_good(gather, image, size)) return n;
    const uint8_t* from = gather.images + image * size;
    const uint8_t* next = gather.images + (after >= 0 && after < gather.count ? after : image) * size;
    T* out = static_cast<T*>(to.out) + n * size;
    const bool flip = to.flip && to.flip[n];
    const int64_t piece = flip ? std::max<int64_t>(1, kTurns / std::max<int64_t>(1, row)) * row : kPiece;
    for (int64_t i = 0; i < size; i += piece) {
      const int64_t some = std::min(piece, size - i);
      ask_for(next + i, some);
      if (flip) reversed<kPast>(from + i, some / row, to.width, to.channels, table, out + i);
      else in_order<kPast>(from + i, some, table, out + i);
    }
  }
  if (kPast) past_the_cache_until_here();
  return -1;
}

// A batch of which the cache cannot hold several is written past it, where every piece of it is aligned.
template <typename T>
int64_t choose(const Gather& gather, volatile int64_t& at) {
  const int64_t row = gather.to.width * gather.to.channels * sizeof(T), size = gather.to.height * row;
  const bool aligned = reinterpret_cast<uintptr_t>(gather.to.out) % kAligned == 0 && row % kAligned == 0;
  return aligned && gather.to.samples * size >= kTooLarge ? run<true, T>(gather, at) : run<false, T>(gather, at);
}

int64_t by_type(const Gather& gather, IngestType type, volatile int64_t& at) {
  switch (type) {
    case IngestType::kFloat: return choose<float>(gather, at);
    case IngestType::kBFloat16: return choose<BFloat16>(gather, at);
    case IngestType::kHalf: return run<false, Half>(gather, at);
    case IngestType::kByte: return choose<uint8_t>(gather, at);
  }
  return -1;
}

}  // namespace

void fastgan_ingest_cpu(const Ingest* ingest, IngestType type, int threads) {
  switch (type) {
    case IngestType::kFloat: return run<float>(*ingest, threads);
    case IngestType::kBFloat16: return run<BFloat16>(*ingest, threads);
    case IngestType::kHalf: return run<Half>(*ingest, threads);
    case IngestType::kByte: return run<uint8_t>(*ingest, threads);
  }
}

int64_t fastgan_gather_cpu(const Gather* gather, IngestType type) {
  volatile int64_t at = 0, bad = -1;
  const bool read = could_read([&] { bad = by_type(*gather, type, at); });
  return read ? bad : at;
}
