#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {
struct Grid {
  void sync() const { emulator::leave(emulator::State::kWaitsForGrid); }
};
inline Grid this_grid() { return {}; }
}  // namespace cooperative_groups
