// The weights of a model's vision part as named views of the mapped file: tower and connector.
// Checks rule 11 of native/format/FORMAT.md section 4 for them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/runtime/tensors.h"
#include "native/runtime/vision_architecture.h"

namespace awqe {

struct VisionLayer {
    Norm attention_norm;      // [hidden]; so are all
    Linear query;             // [heads * head_size, hidden]
    Linear key;               // [heads * head_size, hidden]
    Linear value;             // [heads * head_size, hidden]
    Linear attention_output;  // [hidden, heads * head_size]
    Norm feed_forward_norm;   // [hidden]
    Linear gate;              // [feed_forward, hidden]; no rows where there is none
    Linear up;                // [feed_forward, hidden]
    Linear down;              // [hidden, feed_forward]
};

struct VisionModel {
    VisionArchitecture architecture;
    uint32_t embedding_size;    // of the rows that the decoder reads
    const float* pixel_values;  // [3, 256]: the number of a channel's byte
    Linear patches;             // [hidden, 3 * patch * patch]
    const float* class_token;   // [hidden], or NULL
    const float* positions;     // [rows, hidden]: the class token's first; NULL where it turns:
    const float* frequencies;   // [head_size / 4]
    Norm pre_norm;              // [hidden], or none
    std::vector<VisionLayer> layers;
    Norm post_norm;           // [hidden], or none
    Norm connector_norm;      // [regroup * regroup * hidden], or none
    Linear connector;         // [embedding or connector_size, regroup * regroup * hidden]
    Linear connector_output;  // [embedding, connector_size]; no rows if there is one matrix
    const float* newline;     // [embedding]: the row behind a row of tokens; or NULL

    std::vector<const Linear*> linears() const;  // all that there are
};

// Nothing for a file without a vision part. `embedding_size`: the decoder's hidden size. Throws
// Failure naming the tensor.
std::optional<VisionModel> read_vision(const GgufFile& file, uint32_t embedding_size);

// Whether a tensor is one that read_vision() may look for.
bool is_vision_tensor(const Tensor& tensor);

}  // namespace awqe
