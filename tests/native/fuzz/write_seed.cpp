// Writes the smallest valid model file, the seed of the fuzzer's corpus: write_seed
// tests/data/fuzz/small.awq.gguf
#include <cstdio>

#include "tests/native/support/model_bytes.h"

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    const awqe::test::Bytes bytes = awqe::test::small_model().build();
    std::FILE* const file = std::fopen(argv[1], "wb");
    if (file == nullptr) return 1;
    const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    return std::fclose(file) == 0 && written ? 0 : 1;
}
