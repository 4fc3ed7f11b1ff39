// The self-test of the GPU's kernels, on the emulated GPU: it has a line for each of them, all
// pass, and each one that leaves a single bit wrong is found and named, it alone.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "native/cuda/selftest.h"
#include "native/cuda/selftest_trial.h"
#include "native/cuda/upload.h"
#include "native/failure/failure.h"
#include "native/kernels/dispatch.h"
#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

using namespace awqe::cuda;

void set_gpu(const std::string& settings) { setenv("AWQE_EMULATED_GPU", settings.c_str(), 1); }

// What the emulated driver has beside a driver's functions.
template <class Function>
Function emulated(const char* name) {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != nullptr);
    const auto function = reinterpret_cast<Function>(dlsym(library, name));
    CHECK(function != nullptr);
    return function;
}

std::set<std::string> kernels_of_the_module() {
    const auto name = emulated<const char* (*)(size_t)>("emulated_kernel");
    std::set<std::string> names;
    for (size_t i = 0; name(i) != nullptr; ++i) names.insert(name(i));
    return names;
}

std::vector<KernelCheck> checks_for(int capability) {
    DeviceFacts facts = {};
    facts.capability = capability;
    std::vector<KernelCheck> checks;
    add_row_checks(checks);
    add_attention_checks(checks);
    add_product_checks(facts, checks);
    return checks;
}

TEST(every_kernel_has_a_line) {
    std::set<std::string> checked;
    for (const KernelCheck& check : checks_for(90)) CHECK(checked.insert(check.kernel).second);
    const std::set<std::string> all = kernels_of_the_module();
    for (const std::string& kernel : all) {
        // Too large for a multiprocessor, so nobody starts it.
        if (kernel == "gemm_warpgroup_u8_g32") continue;
        if (checked.count(kernel) == 0) fail(__FILE__, __LINE__, kernel + " has none");
    }
    CHECK_EQUAL(checked.size() + 1, all.size());
    // Boards and what is compiled for itself have no kernels of sm_90.
    for (const KernelCheck& check : checks_for(87)) {
        CHECK(check.kernel.find("walk") != 0 && check.kernel.find("gemm_warpgroup") != 0);
    }
}

struct Told {
    size_t lines = 0;
    std::string wrong;
};

bool tell(void* user, const awqe_selftest_result* result) {
    Told& told = *static_cast<Told*>(user);
    ++told.lines;
    if (result->differing != 0 || result->cases == 0 || std::string(result->kernels) != "cuda") {
        told.wrong += std::string(result->operation) + ": " + std::to_string(result->differing) +
                      " of " + std::to_string(result->cases) + " cases differ. ";
    }
    return true;
}

TEST(a_wrong_kernel_is_named_and_it_alone) {
    set_gpu("capability=87,wrong=norm_many@12");
    Told told;
    awqe_error error = {};
    CHECK_EQUAL(awqe_gpu_selftest(tell, &told, &error), AWQE_OK);
    CHECK_EQUAL(told.lines, checks_for(87).size());
    CHECK_EQUAL(told.wrong.find("norm_many: "), size_t{0});
    CHECK_EQUAL(std::count(told.wrong.begin(), told.wrong.end(), '.'), 1);
}

bool refuse(void*, const awqe_selftest_result*) { return false; }

TEST(it_can_be_stopped_and_says_what_is_missing) {
    set_gpu("capability=87");
    awqe_error error = {};
    CHECK_EQUAL(awqe_gpu_selftest(refuse, nullptr, &error), AWQE_CANCELLED);
    CHECK_EQUAL(awqe_gpu_selftest(nullptr, nullptr, &error), AWQE_INVALID_ARGUMENT);
    set_gpu("capability=75");
    CHECK_EQUAL(awqe_gpu_selftest(refuse, nullptr, &error), AWQE_UNSUPPORTED);
    CHECK(std::string(error.message).find("compute capability 7.5") != std::string::npos);
}

TEST(one_wrong_bit_of_any_kernel_is_found) {
    set_gpu("capability=90");
    const std::shared_ptr<Device> device = Device::shared();
    CHECK_EQUAL(device->facts().capability, 90);
    const Device::Use use(*device);
    size_t tables;
    const KernelTable* const* const all = kernel_tables(&tables);
    Trial trial(device, *all[tables - 1]);  // the reference
    for (const KernelCheck& check : checks_for(90)) {
        for (const bool wrong : {false, true}) {
            // Attention on tensor cores has a bound: a bit of the exponent. Of the others one in
            // the middle of a float's digits.
            const bool bounded = check.kernel.find("attention_tensor") == 0;
            set_gpu(wrong ? "wrong=" + check.kernel + (bounded ? "@30" : "@12") : "");
            trial.cases = trial.differing = 0;
            check.run(trial);
            CHECK(trial.cases >= 2);
            if ((trial.differing > 0) != wrong) {
                fail(__FILE__, __LINE__,
                     check.kernel + (wrong ? ": a wrong bit was not found" : ": differs") + ", " +
                         std::to_string(trial.differing) + " of " + std::to_string(trial.cases));
            }
        }
    }
    set_gpu("");
}

TEST(what_was_opened_before_a_fault_is_closed) {
    const auto open_handles = emulated<int (*)()>("emulated_open_handles");
    for (const char* fault : {"cuStreamCreate=2", "cuEventCreate=2@1", "cuEventCreate=2@2"}) {
        set_gpu(fault);
        double rate = 0;
        awqe_error error = {};
        CHECK_EQUAL(awqe_gpu_read_bandwidth(&rate, &error), AWQE_OUT_OF_MEMORY);
        CHECK_EQUAL(open_handles(), 0);
        set_gpu(std::string(fault) + ",another");  // counts begin again
        const std::shared_ptr<Device> device = Device::shared();
        const Device::Use use(*device);
        bool failed = false;
        try {
            const Upload upload(device, 1000);
        } catch (const Failure& failure) {
            failed = failure.status() == AWQE_OUT_OF_MEMORY;
        }
        CHECK(failed);
        CHECK_EQUAL(open_handles(), 0);
    }
    set_gpu("");
}

}  // namespace
}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
