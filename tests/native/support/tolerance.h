// How far float arithmetic may lie from the float64 oracle: computed from the sizes of what was
// added, never tuned.
#pragma once

#include <cmath>

namespace awqe::test {

constexpr double kEpsilon =
    0x1p-24;  // one rounding of a float: half a unit in the last place, relative

// A sum of terms whose absolute values add up to `magnitude`, each passing through at most
// `roundings` roundings. The last term covers results that underflow.
inline double sum_tolerance(double magnitude, double roundings) {
    return magnitude * roundings * kEpsilon * (1.0 + roundings * kEpsilon) + roundings * 0x1p-149;
}

}  // namespace awqe::test
