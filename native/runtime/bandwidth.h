// How fast this machine reads memory: the bound of every matrix-vector product. Owns the
// measurement, prints nothing.
#pragma once

#include <cstdint>

namespace awqe {

// The fastest of several passes of `threads` threads over `bytes` of memory, in every shape of
// read_shapes.h, in bytes per second: a ceiling, which other programs and a shape that does not
// suit the CPU would only lower. Throws Failure.
double measure_read_bandwidth(unsigned threads, uint64_t bytes);

}  // namespace awqe
