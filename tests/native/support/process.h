// What the system says of this process: its threads and its memory.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iterator>

#include "tests/native/support/check.h"

namespace awqe::test {

inline size_t thread_count() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}
// Until this process has no more threads than that: one that ends unmaps what it had.
inline void wait_for_threads(size_t count) {
    for (int i = 0; i < 10000 && thread_count() > count; ++i) usleep(1000);
    CHECK(thread_count() <= count);
}

// Everything this process has mapped.
inline uint64_t address_space_bytes() {
    unsigned long long pages = 0;
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr);
    const int read = std::fscanf(file, "%llu", &pages);
    std::fclose(file);
    CHECK_EQUAL(read, 1);
    return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace awqe::test
