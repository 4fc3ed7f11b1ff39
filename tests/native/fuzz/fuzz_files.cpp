// Feeds a folder of files to a libFuzzer target without libFuzzer: each as it is, then changed by
// the target's own mutator. With any compiler, under any sanitizer, and in the emulator; the same
// seed gives the same cases everywhere.
//
//     fuzz_..._files DIRECTORY CASES [SEED]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/native/support/random.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed);

namespace {

awqe::test::Random bytes_to_change(7);

}  // namespace

// In place of libFuzzer's: a few bytes become others.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t) {
    for (int i = bytes_to_change.integer(1, 4); i > 0 && size > 0; --i) {
        data[bytes_to_change.bits() % size] = static_cast<uint8_t>(bytes_to_change.bits());
    }
    return size;
}

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        std::fprintf(stderr, "usage: %s DIRECTORY CASES [SEED]\n", argv[0]);
        return 2;
    }
    const unsigned long cases = std::strtoul(argv[2], nullptr, 10);
    const unsigned long seed = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 1;
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
        if (entry.is_regular_file()) paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    std::vector<std::vector<uint8_t>> files;
    for (const auto& path : paths) {
        std::ifstream stream(path, std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(stream),
                           std::istreambuf_iterator<char>());
        LLVMFuzzerTestOneInput(files.back().data(), files.back().size());
    }
    if (files.empty()) {
        std::fprintf(stderr, "there are no files in %s\n", argv[1]);
        return 2;
    }
    awqe::test::Random random(seed);
    for (unsigned long i = 0; i < cases; ++i) {
        std::vector<uint8_t> file = files[random.bits() % files.size()];
        const size_t size =
            LLVMFuzzerCustomMutator(file.data(), file.size(), file.size(), random.bits());
        LLVMFuzzerTestOneInput(file.data(), size);
    }
    std::printf("%zu files, %lu changed ones from seed %lu\n", files.size(), cases, seed);
    return 0;
}
