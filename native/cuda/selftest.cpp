// One kernel per step; see selftest.h.
#include "native/cuda/selftest.h"

#include "native/cuda/selftest_trial.h"
#include "native/kernels/dispatch.h"

namespace awqe::cuda {
namespace {

const KernelTable& reference_table() {
    size_t count;
    const KernelTable* const* const tables = kernel_tables(&count);
    return *tables[count - 1];
}

}  // namespace

KernelSelftest::KernelSelftest(std::shared_ptr<const Device> device) : device_(std::move(device)) {
    add_row_checks(checks_);
    add_attention_checks(checks_);
    add_product_checks(device_->facts(), checks_);
    const Device::Use use(*device_);
    trial_ = std::make_unique<Trial>(device_, reference_table());
}

KernelSelftest::~KernelSelftest() {
    device_->with_context([&] { trial_.reset(); });
}

bool KernelSelftest::next(SelftestResult* result) {
    if (next_ == checks_.size()) return false;
    const KernelCheck& check = checks_[next_++];
    const Device::Use use(*device_);
    trial_->cases = 0;
    trial_->differing = 0;
    check.run(*trial_);
    *result = {"cuda", check.kernel.c_str(), trial_->cases, trial_->differing};
    return true;
}

}  // namespace awqe::cuda
