#pragma once

#include "portable.h"

inline fastgan::BFloat16 __float2bfloat16_rn(float value) { return fastgan::BFloat16::from(value); }
inline uint16_t __bfloat16_as_ushort(fastgan::BFloat16 value) { return value.bits; }
