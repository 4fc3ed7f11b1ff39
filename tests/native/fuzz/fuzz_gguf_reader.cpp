// libFuzzer target: any bytes as a model file. Built by the `fuzz` preset:
//   build/fuzz/tests/native/fuzz_gguf_reader -max_total_time=60 build/corpus tests/data/fuzz
#include <cstddef>
#include <cstdint>

#include "native/api/failure.h"
#include "native/runtime/model.h"
#include "tests/native/support/model_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const awqe::test::AlignedBytes file(data, size);
    try {
        const awqe::Model model(file.data(), file.size());
        // Every value that the C API shows must be readable too.
        for (const awqe::Entry& entry : model.file().entries()) {
            if (entry.value.type != awqe::ValueType::kArray || entry.value.count == 0) continue;
            const awqe::Value last = entry.element(entry.value.count - 1);
            if (last.type == awqe::ValueType::kString) (void)last.as_string();
        }
    } catch (const awqe::Failure&) {
        return 0;
    }
    return 0;
}
