// Feeds random bytes to a libFuzzer target without libFuzzer: with any compiler, under any
// sanitizer, and in the emulator. The same seed gives the same cases everywhere.
//
//     fuzz_..._loop CASES [SEED]
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/native/support/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    const unsigned long cases = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 0;
    if (cases == 0 || argc > 3) {
        std::fprintf(stderr, "usage: %s CASES [SEED]\n", argv[0]);
        return 2;
    }
    const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1;
    awqe::test::Random random(seed);
    for (unsigned long i = 0; i < cases; ++i) {
        uint8_t bytes[64];
        for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.bits());
        LLVMFuzzerTestOneInput(bytes, sizeof(bytes));
    }
    std::printf("%lu cases from seed %lu\n", cases, seed);
    return 0;
}
