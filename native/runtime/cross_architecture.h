// What the gated blocks of a decoder look like that looks at pictures: the keys awq_edge.cross.* of
// a file. Checks rule 7 of native/format/FORMAT.md section 4 for them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/runtime/architecture.h"

namespace awqe {

struct CrossArchitecture {
    std::vector<uint32_t> before;  // layers that a block stands before, ascending
    Architecture form;             // of a block, as a decoder's layer

    // Numbers of a picture's row: its key and its value in each block, one after the other.
    uint64_t row_size() const { return uint64_t{before.size()} * 2 * form.query_size(); }
};

// Nothing for a decoder without such blocks. Throws Failure naming the key.
std::optional<CrossArchitecture> read_cross_architecture(const GgufFile& file,
                                                         const Architecture& decoder);

}  // namespace awqe
