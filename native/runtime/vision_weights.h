// The weights of a model's vision part as named views of the mapped file: tower and connector.
// Checks rule 11 of native/format/FORMAT.md section 4 for them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/runtime/cross_architecture.h"
#include "native/runtime/tensors.h"
#include "native/runtime/vision_architecture.h"

namespace awqe {

// Of a tower, or of a resampler, whose rows attend to the tower's and to themselves.
struct VisionLayer {
    Norm tower_norm;          // [hidden]: of the tower's rows that a resampler reads; or none
    Norm attention_norm;      // [hidden]; so are all that are not said to be otherwise
    Norm query_norm;          // [head_size], or none
    Norm key_norm;            // [head_size], or none
    Linear query;             // [heads * head_size, hidden]
    Linear key;               // [heads * head_size, hidden]
    Linear value;             // [heads * head_size, hidden]
    Linear attention_output;  // [hidden, heads * head_size]
    Norm feed_forward_norm;   // [hidden]
    Linear gate;              // [feed_forward, hidden]; no rows where there is none
    Linear up;                // [feed_forward, hidden]
    Linear down;              // [hidden, feed_forward]
};

// What a gated block makes of a picture's rows.
struct SeenBlock {
    Linear key;     // [heads * head_size, hidden]
    Linear value;   // [heads * head_size, hidden]
    Norm key_norm;  // [head_size], or none
};

// A connector to the stream behind a layer of the tower.
struct VisionTap {
    Norm norm;      // [regroup * regroup * hidden]
    Linear first;   // [connector_size, regroup * regroup * hidden]
    Linear second;  // [decoder's hidden, connector_size]
};

struct VisionModel {
    VisionArchitecture architecture;
    uint32_t embedding_size;    // of the rows that the decoder reads, or that its blocks look at:
                                // behind what it reads stands what each tap gives
    const float* pixel_values;  // [3, 256]: the number of a channel's byte
    Linear patches;             // [hidden, 3 * patch * patch]
    const float* class_token;   // [hidden], or NULL
    const float* positions;     // [rows, hidden]: the class token's first; where it turns
                                // [position_grid * position_grid, hidden], or NULL
    const float* frequencies;   // [head_size / 4]
    Norm pre_norm;              // [hidden], or none
    std::vector<VisionLayer> layers;
    Norm post_norm;        // [hidden], or none
    const float* latents;  // [resampler rows, hidden], or NULL
    std::vector<VisionLayer> resampler;
    Norm resampler_norm;            // [hidden], or none
    std::vector<SeenBlock> blocks;  // in the place of a connector; or none
    Architecture block_form;        // theirs
    Norm connector_norm;            // [regroup * regroup * hidden], or none
    Linear connector;               // [embedding or connector_size, regroup * regroup * hidden]
    Linear connector_output;        // [embedding, connector_size]; no rows if there is one matrix
    std::vector<VisionTap> taps;    // as architecture.taps
    const float* newline;           // [embedding]: the row behind a row of tokens; or NULL

    std::vector<const Linear*> linears() const;  // all that there are
};

// Nothing for a file without a vision part. `cross`: the decoder's gated blocks, or NULL. Throws
// Failure naming the key or the tensor.
std::optional<VisionModel> read_vision(const GgufFile& file, uint32_t hidden_size,
                                       const CrossArchitecture* cross);

// Whether a tensor is one that read_vision() may look for.
bool is_vision_tensor(const Tensor& tensor);

}  // namespace awqe
