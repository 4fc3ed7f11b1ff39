// Embedding and choosing modules; see modules.h. The build defines AWQE_CUDA_FOLDER, where
// compile.py left them, and a word for each of them.
#include "native/cuda/modules.h"

#define AWQE_CUDA_EMBED(symbol, file)                                                     \
    asm(".section .rodata\n.balign 64\n.globl " #symbol "\n.hidden " #symbol "\n" #symbol \
        ":\n.incbin \"" AWQE_CUDA_FOLDER "/" file "\"\n.byte 0\n.previous\n");            \
    extern "C" const unsigned char symbol[];

#if defined(AWQE_CUDA_sm_90_cubin)
AWQE_CUDA_EMBED(awqe_cuda_sm_90, "sm_90.cubin")
#endif
#if defined(AWQE_CUDA_sm_87_cubin)
AWQE_CUDA_EMBED(awqe_cuda_sm_87, "sm_87.cubin")
#endif
#if defined(AWQE_CUDA_compute_80_ptx)
AWQE_CUDA_EMBED(awqe_cuda_compute_80, "compute_80.ptx")
#endif

namespace awqe::cuda {
namespace {

const Module kModules[] = {
#if defined(AWQE_CUDA_sm_90_cubin)
    {"sm_90.cubin", 90, false, awqe_cuda_sm_90},
#endif
#if defined(AWQE_CUDA_sm_87_cubin)
    {"sm_87.cubin", 87, false, awqe_cuda_sm_87},
#endif
#if defined(AWQE_CUDA_compute_80_ptx)
    {"compute_80.ptx", 80, true, awqe_cuda_compute_80},
#endif
};

}  // namespace

const Module* module_for(int capability) {
    for (const Module& module : kModules) {
        if (module.capability == capability) return &module;
    }
    for (const Module& module : kModules) {
        if (module.portable && module.capability <= capability) return &module;
    }
    return nullptr;
}

std::string module_names() {
    std::string names;
    for (const Module& module : kModules) {
        if (!names.empty()) names += ", ";
        names += std::to_string(module.capability / 10) + "." +
                 std::to_string(module.capability % 10) + (module.portable ? " and newer" : "");
    }
    return names;
}

}  // namespace awqe::cuda
