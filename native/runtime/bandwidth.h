// How fast this machine reads memory: the bound of every matrix-vector product. Owns the
// measurement, prints nothing.
#pragma once

#include <cstdint>

namespace awqe {

// Median over several passes of `threads` threads over `bytes` of memory, in bytes per second.
// Throws Failure.
double measure_read_bandwidth(unsigned threads, uint64_t bytes);

}  // namespace awqe
