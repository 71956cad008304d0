// Random numbers as a pure function of (seed, sample index, stream, element): Philox4x32-10 of Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and the numbers that are made of its words.
// fastgan/kernels/counter_noise.py has the definitions, and the same in PyTorch.
//
// Every floating-point operation below is correctly rounded on every processor and none is contracted, so that the
// C++ and the CUDA compiler make the same bits of it.
#pragma once

#include "portable.h"

namespace fastgan {

enum class CounterNoiseKind : int {
  kUniformFloat = 0,
  kUniformDouble = 1,
  kNormalFloat = 2,
  kNormalDouble = 3,
  kIntegers = 4,
};

// out[n, e] for sample numbers index[n], n < samples, e < elements; `high`: of integers only.
struct CounterNoise {
  uint64_t seed;
  uint32_t stream;
  const int64_t* index;
  int64_t samples, elements, high;
  void* out;
};

struct Words {
  uint32_t w[4];
};

FASTGAN_HD Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
  FASTGAN_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ key0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ key1;
    c3 = uint32_t(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of elements 4 block .. 4 block + 3. Numbers of 53 or 63 bits take further, `low` words from the upper half
// of the range of blocks, so that their leading bits are those of the 32-bit numbers.
FASTGAN_HD Words counter_words(const CounterNoise& noise, uint32_t index_low, uint32_t index_high, uint32_t block,
                               bool low) {
  const Words counter = {{index_low, index_high, block | (low ? 0x80000000u : 0u), noise.stream}};
  return philox4x32_10(counter, uint32_t(noise.seed), uint32_t(noise.seed >> 32));
}

// Exact, and without a 64-bit conversion, which AVX2 lacks: 2^52 + word has the word in its last bits.
FASTGAN_HD double word_to_double(uint32_t word) {
  return bit_cast<double>(0x4330000000000000u | uint64_t(word)) - 4503599627370496.0;
}

FASTGAN_HD double bits53(uint32_t high, uint32_t low) {
  return word_to_double(high) * 2097152.0 + word_to_double(low >> 11);
}

FASTGAN_HD float uniform_float(uint32_t word) { return float(int32_t(word >> 8)) * 0x1p-24f; }
FASTGAN_HD double uniform_double(uint32_t high, uint32_t low) { return bits53(high, low) * 0x1p-53; }

// Natural logarithm of u in (0, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1)).
FASTGAN_HD double log_unit(double u) {
  const uint64_t bits = bit_cast<uint64_t>(u);
  double mantissa = bit_cast<double>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FE0000000000000u);  // [1/2, 1)
  double exponent = word_to_double(uint32_t(bits >> 52)) - 1022.0;
  const bool small = mantissa < 0.70710678118654752;
  mantissa = small ? mantissa + mantissa : mantissa;
  exponent = small ? exponent - 1.0 : exponent;
  const double s = (mantissa - 1.0) / (mantissa + 1.0), t = s * s;
  double series = 1.0 / 23;
  series = series * t + 1.0 / 21;
  series = series * t + 1.0 / 19;
  series = series * t + 1.0 / 17;
  series = series * t + 1.0 / 15;
  series = series * t + 1.0 / 13;
  series = series * t + 1.0 / 11;
  series = series * t + 1.0 / 9;
  series = series * t + 1.0 / 7;
  series = series * t + 1.0 / 5;
  series = series * t + 1.0 / 3;
  series = series * t + 1.0;
  return exponent * 0.69314718055994531 + (s + s) * series;
}

struct Pair {
  double first, second;
};

// Box & Muller (1958): sqrt(-2 log u) (cos 2 pi v, sin 2 pi v) for u in (0, 1], v in [0, 1); `v_word`: first 32 bits of
// v. The angle is reduced to [-pi/4, pi/4] by whole quarter turns, which is exact, and summed there as a Taylor series.
FASTGAN_HD Pair box_muller(double u, double v, uint32_t v_word) {
  const double radius = std::sqrt(-2.0 * log_unit(u));
  const uint32_t quarter = (v_word >> 30) + ((v_word >> 29) & 1u);  // 0..4
  const double x = (v - word_to_double(quarter) * 0.25) * 6.2831853071795865, t = x * x;
  double sine = 1.0 / 355687428096000.0;  // 17!
  sine = sine * t - 1.0 / 1307674368000.0;
  sine = sine * t + 1.0 / 6227020800.0;
  sine = sine * t - 1.0 / 39916800.0;
  sine = sine * t + 1.0 / 362880.0;
  sine = sine * t - 1.0 / 5040.0;
  sine = sine * t + 1.0 / 120.0;
  sine = sine * t - 1.0 / 6.0;
  sine = (sine * t + 1.0) * x;
  double cosine = 1.0 / 20922789888000.0;  // 16!
  cosine = cosine * t - 1.0 / 87178291200.0;
  cosine = cosine * t + 1.0 / 479001600.0;
  cosine = cosine * t - 1.0 / 3628800.0;
  cosine = cosine * t + 1.0 / 40320.0;
  cosine = cosine * t - 1.0 / 720.0;
  cosine = cosine * t + 1.0 / 24.0;
  cosine = cosine * t - 1.0 / 2.0;
  cosine = cosine * t + 1.0;
  const bool odd = quarter & 1u;
  const double c = odd ? sine : cosine, s = odd ? cosine : sine;
  return {radius * ((quarter + 1u) & 2u ? -c : c), radius * (quarter & 2u ? -s : s)};
}

// 32 random bits a number, in double precision throughout: the float nearest to the exact value, but for rare ties.
FASTGAN_HD Pair normal_float(uint32_t u, uint32_t v) {
  return box_muller((word_to_double(u) + 0.5) * 0x1p-32, word_to_double(v) * 0x1p-32, v);
}
FASTGAN_HD Pair normal_double(uint32_t u, uint32_t u_low, uint32_t v, uint32_t v_low) {
  return box_muller((bits53(u, u_low) + 0.5) * 0x1p-53, bits53(v, v_low) * 0x1p-53, v);
}

// 63 random bits modulo `high`, which is at most 2^32: no value is likelier than another by more than 2^-31.
FASTGAN_HD int64_t integer_below(uint32_t high_word, uint32_t low_word, int64_t high) {
  return int64_t((uint64_t(high_word) << 31) | (low_word >> 1)) % high;
}

}  // namespace fastgan

extern "C" {
void fastgan_counter_noise_cpu(const fastgan::CounterNoise* noise, fastgan::CounterNoiseKind kind, int threads);

// Queues on `stream` of `device`; returns a cudaError_t.
int fastgan_counter_noise_cuda(const fastgan::CounterNoise* noise, fastgan::CounterNoiseKind kind, int device,
                               void* stream);
}
