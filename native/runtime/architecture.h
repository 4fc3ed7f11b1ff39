// What a decoder looks like, apart from its weights: the keys awq_edge.decoder.* of a file. Checks
// rule 7 of native/format/FORMAT.md section 4.
#pragma once

#include <cstdint>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/kernels/activation/activation_f32.h"
#include "native/kernels/router/choose_experts.h"

namespace awqe {

enum class NormKind { kRms, kLayer };

// Where a layer's norms stand.
enum class NormPlaces {
    kBefore,  // stream + branch(norm(stream))
    kAfter,   // stream + norm(branch(stream))
    kBoth,    // stream + norm(branch(norm(stream)))
    kStream,  // norm(stream + branch(stream))
};

// How a decoder knows positions.
enum class PositionKind {
    kRotary,   // queries and keys are turned
    kLearned,  // a row of a table is added to the embedding
    kAlibi,    // scores fall with the distance
};

enum class QkNorm {
    kNone,
    kHead,   // of each head, one weight for all heads
    kHeads,  // of each head, each with its own weight
    kWidth,  // of all heads together
};

struct Architecture {
    uint32_t layers;
    uint32_t hidden_size;
    uint32_t vocabulary_size;
    uint32_t context_length;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    NormKind norm;  // of all norms
    float norm_epsilon;
    NormPlaces norm_places;
    bool final_norm;      // of the stream, before the head
    bool embedding_norm;  // of the stream's beginning
    bool parallel;        // both branches of a layer read the layer's input
    PositionKind position;
    std::vector<uint32_t> rope_tables;  // [layers]: which table of frequencies; empty if not rotary
    // How many angles of a head turn by the first, the second and the third number of a position;
    // empty: all by the one that it has.
    std::vector<uint32_t> rope_sections;
    bool rope_interleaved;  // the numbers take turns from angle to angle, not section by section
    QkNorm qk_norm;
    float qkv_clamp;  // 0: none
    float score_cap;  // 0: none
    float logit_cap;  // 0: none
    bool gated;       // down(act(gate) * up), otherwise down(act(up))
    Activation activation;
    uint32_t experts;  // of a layer that has any; 0: no layer has
    uint32_t experts_per_token;
    uint32_t expert_size;         // width between an expert's matrices
    uint32_t shared_expert_size;  // the same of one that every token passes; 0: there is none
    Routing routing;
    float router_epsilon;                 // of sparsemixer
    std::vector<uint32_t> expert_layers;  // [layers]: 1 if the layer has experts, otherwise 0
    bool tied_head;
    std::vector<uint32_t>
        sliding_windows;  // [layers]: positions a token sees, itself included; 0 = all

    uint32_t query_size() const { return heads * head_size; }
    uint32_t key_size() const { return kv_heads * head_size; }
    uint32_t rope_table_count() const;
};

// Throws Failure naming the key.
Architecture read_architecture(const GgufFile& file);

}  // namespace awqe
