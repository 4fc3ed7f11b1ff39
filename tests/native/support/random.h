// Repeatable random numbers for tests: the same on every machine and compiler, unlike the standard
// distributions.
#pragma once

#include <cstdint>

namespace awqe::test {

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}

    uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state_ >> 32);
    }
    // first ... last, both included
    int32_t integer(int32_t first, int32_t last) {
        return first + static_cast<int32_t>(bits() % static_cast<uint32_t>(last - first + 1));
    }
    // -limit ... limit
    float real(float limit) { return (static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f) * limit; }

  private:
    uint64_t state_;
};

}  // namespace awqe::test
