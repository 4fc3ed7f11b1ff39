// What the vision part of a model looks like, apart from its weights: the keys awq_edge.vision.* of
// a file. Checks rule 7 of native/format/FORMAT.md section 4 for them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/kernels/activation/activation_f32.h"

namespace awqe {

// Learned rows that attend to the tower's.
struct ResamplerArchitecture {
    uint32_t layers;
    uint32_t rows;
    uint32_t heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    Activation activation;
    float norm_epsilon;
    bool qk_norm;

    uint32_t query_size() const { return heads * head_size; }
};

enum class ConnectorNorm { kNone, kLayer, kRms };

// Between a picture of image_size x image_size pixels and rows for the decoder.
struct VisionArchitecture {
    // The tower.
    uint32_t layers;
    uint32_t hidden_size;
    uint32_t heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    uint32_t image_size;  // pixels on a side; where pictures have any size, the most
    uint32_t patch_size;  // the same of a patch
    float norm_epsilon;
    Activation activation;
    bool rms;     // norms are RMS norms, otherwise layer norms
    bool gated;   // down(act(gate) * up), otherwise down(act(up))
    bool rotary;  // queries and keys turn by row and column, and pictures have any size; otherwise
                  // every patch has a learned position
    uint32_t position_grid;  // side of the table that a turning patch's position is interpolated
                             // from; 0: it has none
    uint32_t window;         // patches on a side that see each other; 0: all do
    std::vector<uint32_t> full_layers;  // in which all do nevertheless
    bool class_token;
    bool keep_class;  // it stays behind the last layer
    bool pre_norm;    // of the stream's beginning
    bool post_norm;   // of the stream's end
    // Between the tower and the decoder, in this order.
    uint32_t pool;     // average over pool x pool patches
    uint32_t regroup;  // regroup x regroup neighbours become one wide row
    bool by_columns;   // these rows follow each other column by column, otherwise line by line
    ConnectorNorm connector_norm;
    float connector_norm_epsilon;     // 0 without that norm
    uint32_t connector_size;          // width between two matrices; 0: there is one
    Activation connector_activation;  // between them
    std::vector<uint32_t> taps;  // layers whose stream a connector of its own reads, ascending:
                                 // the decoder takes up what it makes behind its first layers
    // In the decoder: a picture's rows see each other in both directions.
    bool bidirectional;
    // Or, for a decoder that looks at pictures: keys and values for its gated blocks.
    bool for_blocks;
    std::optional<ResamplerArchitecture> resampler;

    uint32_t query_size() const { return heads * head_size; }
    uint32_t patch_columns() const { return 3 * patch_size * patch_size; }
    uint32_t grid() const { return image_size / patch_size; }  // patches on a side
    uint32_t rows() const { return grid() * grid() + (class_token ? 1 : 0); }
    uint32_t pooled_grid() const { return grid() / pool; }
    uint32_t token_grid() const { return pooled(grid()); }
    uint32_t kept_rows() const { return rows() - first_kept(); }  // behind the last layer
    uint32_t first_kept() const { return class_token && !keep_class ? 1 : 0; }
    uint32_t tokens() const {
        if (resampler) return resampler->rows;
        return for_blocks ? kept_rows() : token_grid() * token_grid();
    }
    // Tokens on a side of so many patches.
    uint32_t pooled(uint32_t patches) const { return (patches / pool + regroup - 1) / regroup; }
    uint32_t connector_columns() const { return regroup * regroup * hidden_size; }
};

// Nothing for a file without a vision part. Throws Failure naming the key.
std::optional<VisionArchitecture> read_vision_architecture(const GgufFile& file);

}  // namespace awqe
