// What all bindings share: addresses of tensors, which Python owns and has checked.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;
namespace fastgan {}
using namespace fastgan;
using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

namespace {

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace
