// How fast the GPU reads its memory.
#pragma once

#include <memory>

#include "native/cuda/device.h"

namespace awqe::cuda {

// Bytes per second, the best of several passes over more than its caches hold; 0 where the driver
// measures no time. Throws Failure.
double read_bandwidth(const std::shared_ptr<const Device>& device);

}  // namespace awqe::cuda
