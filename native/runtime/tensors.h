// The tensors of a file one by one: kind, shape and finite numbers of each (rule 11 of
// native/format/FORMAT.md section 4), as views of the mapped file. Every function throws Failure
// with a sentence that names the tensor. Which tensors there are is the business of model.cpp and
// vision_weights.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "native/format/gguf_reader.h"
#include "native/format/layouts.h"

namespace awqe {

// A matrix with its bias: y = W x + bias.
struct Linear {
    PackedMatrix weight;  // [n, k]
    const float* bias;    // [n], or NULL
};

// A norm over n numbers; without a weight there is none.
struct Norm {
    const float* weight;  // [n], or NULL
    const float* bias;    // [n], or NULL
};

// float32 [size], not read yet
const Tensor& need_floats(const GgufFile& file, const std::string& name, uint64_t size);
// float32 [size], finite numbers
const float* need_vector(const GgufFile& file, const std::string& name, uint64_t size);
PackedMatrix need_matrix(const GgufFile& file, const std::string& name, uint64_t rows,
                         uint64_t columns);
// `name` without ".weight" and ".bias".
Linear need_linear(const GgufFile& file, const std::string& name, uint64_t rows, uint64_t columns);
// Matrices that read one quantised input.
void need_equal_groups(const std::string& layer, const char* first_name, const Linear& first,
                       const char* second_name, const Linear& second);
// What a key says must be what the file holds; the reason names the key.
void need_absent(const GgufFile& file, const std::string& name, const char* reason);

// Of all blocks, without the header.
uint64_t packed_bytes(const PackedMatrix& w);

}  // namespace awqe
