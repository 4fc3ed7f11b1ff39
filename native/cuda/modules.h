// The compiled kernels that this library carries, made by compile.py and embedded as they are. Owns
// the choice of one for a GPU.
#pragma once

#include <string>

namespace awqe::cuda {

struct Module {
    const char* name;   // the file that compile.py wrote
    int capability;     // 10 * major + minor
    bool portable;      // PTX: also for every newer GPU
    const void* bytes;  // ends in a NUL
};

// The module for a GPU of this capability: its own machine code, otherwise the newest PTX that is
// not newer than it. Machine code for a relative does not run on a Jetson. NULL where there is
// none.
const Module* module_for(int capability);

// For a sentence: "9.0, 8.7, 8.0 and newer".
std::string module_names();

}  // namespace awqe::cuda
