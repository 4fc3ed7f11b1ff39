// Every shape reads every word once, whatever the number of lines; how fast is bench_kernels'
// business.
#include "native/runtime/bandwidth.h"

#include <vector>

#include "native/runtime/read_shapes.h"
#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

TEST(every_shape_reads_every_word_once) {
    for (const size_t lines : {1, 2, 3, 4, 5, 7, 8, 127, 128, 129, 1000}) {
        std::vector<uint64_t> words(lines * kLineWords);
        // Words that are all different, so that one read twice for another one changes the sum.
        uint64_t value = 1;
        uint64_t expected = 0;
        for (uint64_t& word : words) {
            value *= 6364136223846793005u;
            word = value;
            expected += value;
        }
        for (const ReadShape sum : kReadShapes) CHECK_EQUAL(sum(words.data(), lines), expected);
    }
}

TEST(a_rate_is_measured_for_any_size_and_any_number_of_threads) {
    for (const uint64_t bytes : {uint64_t{64}, uint64_t{4097}, uint64_t{1} << 20}) {
        for (const unsigned threads : {0u, 1u, 3u}) {
            CHECK(measure_read_bandwidth(threads, bytes) > 0);
        }
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
