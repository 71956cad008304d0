#pragma once

#include "portable.h"

inline fastgan::Half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(fastgan::Half value) { return float(value); }
inline fastgan::Half __float2half_rn(float value) { return fastgan::Half::from(value); }
inline uint16_t __half_as_ushort(fastgan::Half value) { return value.bits; }
