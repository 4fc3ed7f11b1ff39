// In the place of native/cuda/modules.cpp: what the emulated GPU takes for a module.
#include "native/cuda/modules.h"

namespace awqe::cuda {
namespace {

const Module kModules[] = {{"emulated", 90, false, "emulated"}, {"any", 80, true, "emulated"}};

}  // namespace

const Module* module_for(int capability) {
    for (const Module& module : kModules) {
        if (module.capability == capability) return &module;
    }
    return capability >= kModules[1].capability ? &kModules[1] : nullptr;
}

std::string module_names() { return "9.0, 8.0 and newer"; }

}  // namespace awqe::cuda
