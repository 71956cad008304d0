// CRC-32 (polynomial 0xEDB88320, as in zlib and PNG) at about the speed of memory: blocks of 64 bytes are folded by
// carry-less multiplication (Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009), the
// rest goes through a table. Other processors take eight tables at a time.
#include "faults.h"
#include "ingest.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FASTGAN_PCLMUL 1
#endif

namespace {

constexpr uint32_t kPolynomial = 0xEDB88320u;

// v x, modulo the polynomial; the lowest power of x is the highest bit.
constexpr uint32_t times_x(uint32_t v) { return (v >> 1) ^ (v & 1 ? kPolynomial : 0); }

struct Tables {
  uint32_t at[8][256];
  constexpr Tables() : at() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t v = i;
      for (int bit = 0; bit < 8; ++bit) v = times_x(v);
      at[0][i] = v;
    }
    for (int t = 1; t < 8; ++t)
      for (int i = 0; i < 256; ++i) at[t][i] = (at[t - 1][i] >> 8) ^ at[0][at[t - 1][i] & 255];
  }
};
constexpr Tables kTables;

uint32_t by_table(uint32_t crc, const uint8_t* data, int64_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    crc ^= uint32_t(data[0]) | uint32_t(data[1]) << 8 | uint32_t(data[2]) << 16 | uint32_t(data[3]) << 24;
    uint32_t next = 0;
    for (int i = 0; i < 4; ++i) next ^= kTables.at[7 - i][(crc >> 8 * i) & 255] ^ kTables.at[3 - i][data[4 + i]];
    crc = next;
  }
  for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kTables.at[0][(crc ^ *data) & 255];
  return crc;
}

#ifdef FASTGAN_PCLMUL
// x^n modulo the polynomial, as a factor of 64 bits.
constexpr uint64_t power(int n) {
  uint32_t v = 0x80000000u;
  for (int i = 0; i < n; ++i) v = times_x(v);
  return uint64_t(v) << 32;
}

// x^distance times what `x` stands for, in 128 bits again. A product of mirrored factors is one power of x too high.
template <int distance>
__attribute__((target("pclmul"), always_inline)) inline __m128i fold(__m128i x) {
  const __m128i factors = _mm_set_epi64x(int64_t(power(distance - 1)), int64_t(power(distance + 63)));
  return _mm_xor_si128(_mm_clmulepi64_si128(x, factors, 0x00), _mm_clmulepi64_si128(x, factors, 0x11));
}

__attribute__((target("pclmul"))) uint32_t by_folding(const uint8_t* data, int64_t size) {
  const auto load = [&data](int i) __attribute__((always_inline)) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i);
  };
  __m128i x0 = _mm_xor_si128(load(0), _mm_cvtsi32_si128(-1)), x1 = load(1), x2 = load(2), x3 = load(3);
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
    x0 = _mm_xor_si128(fold<512>(x0), load(0));
    x1 = _mm_xor_si128(fold<512>(x1), load(1));
    x2 = _mm_xor_si128(fold<512>(x2), load(2));
    x3 = _mm_xor_si128(fold<512>(x3), load(3));
  }
  x1 = _mm_xor_si128(fold<128>(x0), x1);
  x2 = _mm_xor_si128(fold<128>(x1), x2);
  x3 = _mm_xor_si128(fold<128>(x2), x3);
  uint8_t left[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(left), x3);
  return by_table(by_table(0, left, sizeof(left)), data, size);
}
#endif

}  // namespace

uint32_t fastgan::crc32_of(const uint8_t* data, int64_t size) {
#ifdef FASTGAN_PCLMUL
  static const bool folds = __builtin_cpu_supports("pclmul");
  if (folds && size >= 64) return ~by_folding(data, size);
#endif
  return ~by_table(~0u, data, size);
}

int64_t fastgan_crc32(const uint8_t* data, int64_t size) {
  volatile int64_t sum = -1;
  return fastgan::could_read([&] { sum = fastgan::crc32_of(data, size); }) ? sum : -1;
}
