// The inner loops of ingest and gather: values in their order, or the last pixel first.
#pragma once

#include <algorithm>
#include <type_traits>

#include "avx2.h"
#include "ingest.h"

namespace fastgan {

// Whoever does not read whole vectors looks up its values: there are only 256 of them.
template <typename T>
struct Table {
  T at[256];
  Table() {
    for (int i = 0; i < 256; ++i) ingest_store(ingest_value(uint8_t(i)), &at[i]);
  }
};

template <>
struct Table<uint8_t> {
  uint8_t at[256];
  Table() {
    for (int i = 0; i < 256; ++i) at[i] = uint8_t(i);
  }
};

constexpr int64_t kTurned = 4096;  // bytes that are turned round before their values are looked at

#ifdef FASTGAN_AVX2
// Eight pixels less 127.5, and the quotient by 127.5 correctly rounded: by the reciprocal, and the remainder of that
// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
FASTGAN_AVX2 inline __m256 centred(const uint8_t* from) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)), _mm256_set1_ps(127.5f));
}

FASTGAN_AVX2 inline __m256 divided(__m256 x) {
  const __m256 half = _mm256_set1_ps(127.5f), reciprocal = _mm256_set1_ps(1.0f / 127.5f);
  const __m256 near = _mm256_mul_ps(x, reciprocal);
  return _mm256_fmadd_ps(_mm256_fnmadd_ps(near, half, x), reciprocal, near);
}

// How many values were written. kPast: past the cache, for memory that nobody reads soon; `to` is aligned to 32 then.
template <bool kPast>
FASTGAN_AVX2 int64_t vectors(const uint8_t* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    if (kPast) _mm256_stream_ps(to + i, divided(centred(from + i)));
    else _mm256_storeu_ps(to + i, divided(centred(from + i)));
  return i;
}

// The product with the reciprocal rounds to the same bfloat16 as the quotient for every pixel, and none is in the middle.
FASTGAN_AVX2 inline __m256i upper_halves(const uint8_t* from) {
  const __m256 value = _mm256_mul_ps(centred(from), _mm256_set1_ps(1.0f / 127.5f));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(value), _mm256_set1_epi32(0x8000)), 16);
}

template <bool kPast>
FASTGAN_AVX2 int64_t vectors(const uint8_t* from, int64_t n, BFloat16* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i both = _mm256_packus_epi32(upper_halves(from + i), upper_halves(from + i + 8));
    const __m256i values = _mm256_permute4x64_epi64(both, 0xD8);
    auto* const place = reinterpret_cast<__m256i*>(to + i);
    if (kPast) _mm256_stream_si256(place, values);
    else _mm256_storeu_si256(place, values);
  }
  return i;
}

FASTGAN_AVX2 inline int64_t copied_past(const uint8_t* from, int64_t n, uint8_t* to) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
  return i;
}

// What was written past the cache comes before everything that is written from here on.
inline void past_the_cache_until_here() { _mm_sfence(); }

// A row of three channels, last pixel first, five pixels at a time; writes up to a byte beyond the end.
FASTGAN_AVX2 inline void turn_round(const uint8_t* row, int64_t width, uint8_t* to) {
  const __m128i order = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
  int64_t left = width;
  for (; left > 5; left -= 5, to += 15) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 3 * (left - 5) - 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(some, order));
  }
  for (; left > 0; --left, to += 3) memcpy(to, row + 3 * (left - 1), 3);
}
#else
inline void past_the_cache_until_here() {}
#endif

// Everything else, one value after the other.
template <typename T>
void one_by_one(const uint8_t* __restrict__ from, int64_t n, const Table<T>& table, T* __restrict__ to) {
  for (int64_t i = 0; i < n; ++i) to[i] = table.at[from[i]];
}

template <bool kPast, typename T>
void in_order(const uint8_t* from, int64_t n, const Table<T>& table, T* to) {
  int64_t i = 0;
#ifdef FASTGAN_AVX2
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, BFloat16>)
    if (has_avx2()) i = vectors<kPast>(from, n, to);
#endif
  if constexpr (sizeof(T) == 2)  // four at a time: GCC fills vectors of them one element after the other
    for (; i + 4 <= n; i += 4) {
      uint64_t four = 0;
      for (int k = 0; k < 4; ++k) four |= uint64_t(table.at[from[i + k]].bits) << (16 * k);
      memcpy(to + i, &four, sizeof(four));
    }
  one_by_one(from + i, n - i, table, to + i);
}

template <bool kPast>
void in_order(const uint8_t* from, int64_t n, const Table<uint8_t>&, uint8_t* to) {
  int64_t i = 0;
#ifdef FASTGAN_AVX2
  if (kPast && has_avx2()) i = copied_past(from, n, to);
#endif
  memcpy(to + i, from + i, size_t(n - i));
}

// Rows one after another, of each the last pixel first.
template <bool kPast, typename T>
void reversed(const uint8_t* from, int64_t rows, int64_t width, int64_t channels, const Table<T>& table, T* to) {
  const int64_t row = width * channels;
#ifdef FASTGAN_AVX2
  if (channels == 3 && row < kTurned && has_avx2()) {
    // Many rows before any is read again: a load that spans two stores waits until both have left the processor.
    uint8_t turned[kTurned];
    const int64_t most = (kTurned - 1) / row;
    for (int64_t h = 0; h < rows; h += most) {
      const int64_t some = std::min(most, rows - h);
      for (int64_t i = 0; i < some; ++i) turn_round(from + (h + i) * row, width, turned + i * row);
      in_order<kPast>(turned, some * row, table, to + h * row);
    }
    return;
  }
#endif
  for (int64_t h = 0; h < rows; ++h) {
    const uint8_t* last = from + h * row + (width - 1) * channels;
    for (int64_t w = 0; w < width; ++w, last -= channels, to += channels)
      for (int64_t c = 0; c < channels; ++c) to[c] = table.at[last[c]];
  }
}

}  // namespace fastgan
