// The contract of the rotary position embedding with half pairing: dimension i of a head turns with
// dimension i + d/2.
#pragma once

#include <stddef.h>

namespace awqe {

// x: float [heads, head_size], rotated in place. cosines, sines: float [head_size / 2], of the
// token's position.
using RopeFunction = void (*)(float* x, size_t heads, size_t head_size, const float* cosines,
                              const float* sines);

// cosines, sines: float [half], of the angles position * inverse_frequencies[i]. One implementation
// for every CPU: it is called once per token and shared by all layers.
void rope_angles(size_t position, const float* inverse_frequencies, size_t half, float* cosines,
                 float* sines);

}  // namespace awqe
