// The choice of a table: the best one, a forced one, and the sentences for names that cannot be
// had.
#include <cstring>

#include "tests/native/support/check.h"
#include "tests/native/support/tables.h"

namespace awqe::test {
namespace {

TEST(the_first_table_whose_needs_are_met_wins) {
    size_t count = 0;
    const KernelTable* const* all = kernel_tables(&count);
    std::string problem;
    for (size_t i = 0; i < count; ++i) {
        // A CPU with exactly this table's features: nothing before it may need less.
        const KernelTable* chosen = choose_kernels(nullptr, all[i]->required, &problem);
        CHECK_EQUAL(std::string(chosen->name), all[i]->name);
        CHECK(choose_kernels("", all[i]->required, &problem) == chosen);
    }
    CHECK(problem.empty());
}

TEST(the_last_table_is_the_reference_and_needs_nothing) {
    CHECK_EQUAL(std::string(reference_table().name), "reference");
    CHECK_EQUAL(reference_table().required, 0u);
}

TEST(a_table_can_be_forced_by_its_name) {
    std::string problem;
    for (const KernelTable* table : runnable_tables()) {
        CHECK(choose_kernels(table->name, cpu_features(), &problem) == table);
    }
    CHECK(problem.empty());
}

TEST(an_unknown_name_is_refused_with_the_names_there_are) {
    std::string problem;
    CHECK(choose_kernels("sse", cpu_features(), &problem) == nullptr);
    CHECK(problem.find("'sse'") != std::string::npos);
    CHECK(problem.find("reference") != std::string::npos);
}

TEST(a_name_this_cpu_cannot_run_is_refused) {
    size_t count = 0;
    const KernelTable* const* all = kernel_tables(&count);
    for (size_t i = 0; i + 1 < count; ++i) {
        std::string problem;
        CHECK(choose_kernels(all[i]->name, 0, &problem) == nullptr);
        CHECK(problem.find("cannot run") != std::string::npos);
        CHECK(problem.find(all[i]->name) != std::string::npos);
    }
}

TEST(every_table_is_complete) {
    size_t count = 0;
    const KernelTable* const* all = kernel_tables(&count);
    for (size_t i = 0; i < count; ++i) {
        for (const int bits : {2, 3, 4, 5, 6, 8}) {
            CHECK(all[i]->gemv[bits] != nullptr);
            CHECK(all[i]->gemm[bits] != nullptr);
        }
        CHECK(all[i]->quantize_act != nullptr);
        CHECK(all[i]->rms_norm != nullptr);
        CHECK(all[i]->rope != nullptr);
        CHECK(all[i]->store_half != nullptr);
        CHECK(all[i]->attention_f16 != nullptr);
        CHECK(all[i]->attention_s8 != nullptr);
        CHECK(all[i]->activation.silu != nullptr);
        CHECK(all[i]->embedding != nullptr);
    }
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
