// The kernels of native/cuda/kernels, compiled for a CPU, by their names.
#pragma once

#include <cstddef>
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

// NULL behind the last one.
const char* kernel_name(size_t index);

}  // namespace awqe::emulated
