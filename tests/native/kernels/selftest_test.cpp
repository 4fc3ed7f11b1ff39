// The self-test can fail: a kernel that is wrong in one bit, or that writes beside its result, is
// named; a sound table passes; the recorded results are those of this build's reference.
#include "native/kernels/selftest.h"

#include <cstring>
#include <map>
#include <string>

#include "tests/native/support/check.h"
#include "tests/native/support/tables.h"

namespace awqe::test {
namespace {

static_assert(sizeof(KernelTable) == 16 + (6 + 6 + 5 + 11) * sizeof(void*),
              "an operation was added to the kernel tables: add it to the self-test too");

using Differences = std::map<std::string, uint32_t>;

Differences differences(const KernelTable& tested) {
    Differences found;
    Selftest selftest(tested, reference_table());
    for (SelftestResult result; selftest.next(&result);) {
        CHECK(result.cases > 0);
        found[result.operation] = result.differing;
    }
    return found;
}

void expect_only(const KernelTable& tested, const std::string& operation) {
    const Differences found = differences(tested);
    CHECK(found.count(operation) == 1);
    for (const auto& [name, differing] : found) CHECK((differing > 0) == (name == operation));
}

void one_bit_off(const PackedMatrix* w, const QuantizedRows* x, float* y, size_t begin,
                 size_t end) {
    reference_table().gemv[4](w, x, y, begin, end);
    if (end - begin != 27) return;  // of the largest shape alone
    uint32_t bits;
    std::memcpy(&bits, y + begin, sizeof(bits));
    bits ^= 1;
    std::memcpy(y + begin, &bits, sizeof(bits));
}

void writes_one_too_many(const float* gate, const float* up, size_t n, float* out) {
    reference_table().activation.silu(gate, up, n, out);
    if (n == 33) out[n] = 0.0f;
}

TEST(a_sound_table_passes) {
    const Differences found = differences(reference_table());
    CHECK_EQUAL(found.size(), 32u);
    for (const auto& [name, differing] : found) CHECK_EQUAL(differing, 0u);
}

TEST(one_wrong_bit_is_found_and_named) {
    KernelTable table = reference_table();
    table.gemv.u4 = one_bit_off;
    expect_only(table, "matrix-vector, 4 bits");
}

TEST(a_write_beside_the_result_is_found_and_named) {
    KernelTable table = reference_table();
    table.activation.silu = writes_one_too_many;
    expect_only(table, "SiLU");
}

TEST(every_table_of_this_cpu_passes_and_the_recorded_results_hold) {
    size_t tables = 0;
    std::string last;
    Selftest selftest;
    for (SelftestResult result; selftest.next(&result);) {
        if (result.differing != 0) {
            fail(__FILE__, __LINE__, std::string(result.kernels) + ": " + result.operation);
        }
        tables += last != result.kernels ? 1 : 0;
        last = result.kernels;
    }
    CHECK_EQUAL(tables, runnable_tables().size());
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
