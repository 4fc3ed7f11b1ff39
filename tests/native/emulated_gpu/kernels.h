// The kernels of native/cuda/kernels, compiled for a CPU, by their names.
#pragma once

#include <functional>

namespace awqe::emulated {

// One kernel: of the addresses of its arguments, as a launch has them, makes a call of one thread
// that owns copies of them.
struct Kernel {
    const char* name;
    std::function<void()> (*bind)(void** arguments);
};

// NULL: there is none of that name.
const Kernel* kernel_by_name(const char* name);

}  // namespace awqe::emulated
