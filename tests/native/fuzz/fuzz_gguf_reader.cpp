// libFuzzer target: any bytes as a model file. Built by the `fuzz` preset:
//   build/fuzz/tests/native/fuzz_gguf_reader -max_total_time=60 build/fuzz/reader tests/data/fuzz
#include <cstddef>
#include <cstdint>

#include "native/failure/failure.h"
#include "native/runtime/model.h"
#include "tests/native/support/model_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const awqe::test::AlignedBytes file(data, size);
    try {
        const awqe::Model model(file.data(), file.size());
        // Every value that the C API shows must be readable too.
        for (const awqe::Entry& entry : model.file().entries()) {
            uint8_t sum = 0;
            for (uint64_t i = 0; i < entry.value.bytes; ++i) sum ^= entry.value.data[i];
            asm volatile("" : : "r"(sum));  // somebody has read it
        }
    } catch (const awqe::Failure&) {
        return 0;
    }
    return 0;
}
