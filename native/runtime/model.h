// An opened model: the mapped file, what the decoder looks like, its weights as named views, and
// the vision part of a file that has one. Checks rule 11 of native/format/FORMAT.md section 4.
// Immutable after construction, so sessions on several threads may share one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/format/layouts.h"
#include "native/format/mapped_file.h"
#include "native/runtime/architecture.h"
#include "native/runtime/cross_architecture.h"
#include "native/runtime/tensors.h"
#include "native/runtime/vision_weights.h"

namespace awqe {

// W_down (act(W_gate x) * W_up x), or W_down (act(W_up x) * activation_scales) without a gate.
struct FeedForward {
    Linear gate;                     // [width, hidden]; no rows if there is none
    Linear up;                       // [width, hidden]
    Linear down;                     // [hidden, width]
    const float* activation_scales;  // [width], or NULL
};

// A mixture of experts in the place of a feed-forward.
struct Experts {
    const float* router;           // [experts, hidden]; NULL: the layer has no experts
    std::vector<FeedForward> all;  // [experts]: [expert_size]
    FeedForward shared;            // [shared_expert_size]; no rows if there is none
    const float* shared_router;    // [hidden], or NULL: its output counts whole

    bool has_shared() const { return shared.up.weight.rows > 0; }
};

struct LayerWeights {
    Norm attention_norm;       // [hidden]: of what attention reads
    Linear query;              // [heads * head_size, hidden]
    Linear key;                // [kv_heads * head_size, hidden]
    Linear value;              // [kv_heads * head_size, hidden]
    Norm query_norm;           // [head_size], or [heads * head_size]: Architecture::qk_norm
    Norm key_norm;             // [head_size], or [kv_heads * head_size]
    Linear attention_output;   // [hidden, heads * head_size]
    Norm attention_post_norm;  // [hidden]: of what attention gives, or of the stream with it
    Norm feed_forward_norm;    // [hidden]
    FeedForward feed_forward;  // no rows in a layer with experts
    Experts experts;
    Norm feed_forward_post_norm;  // [hidden]

    // The matrices that there are, in the order of their use.
    std::vector<const Linear*> linears() const;
};

class Model {
  public:
    // Maps the file at `path`. Throws Failure.
    explicit Model(const char* path);
    // Reads a file that lies in memory: bytes [size], 64-byte aligned, which must outlive the
    // model.
    Model(const uint8_t* bytes, size_t size);

    const GgufFile& file() const { return file_; }
    // Whether its bytes are a shared mapping of a file, not somebody's memory.
    bool is_mapped_file() const { return mapping_ != nullptr; }
    const Architecture& architecture() const { return architecture_; }

    const PackedMatrix& embedding() const { return embedding_; }    // [vocabulary, hidden]
    const Norm& embedding_norm() const { return embedding_norm_; }  // [hidden]
    const float* learned_positions() const {
        return learned_positions_;
    }  // [context, hidden] or NULL
    const std::vector<LayerWeights>& layers() const { return layers_; }
    const Norm& output_norm() const { return output_norm_; }  // [hidden]
    const Linear& head() const { return head_; }              // [vocabulary, hidden]
    // [Architecture::rope_table_count(), head_size / 2]
    const float* inverse_frequencies() const { return inverse_frequencies_; }
    const float* alibi_slopes() const { return alibi_slopes_; }  // [heads], or NULL

    // The gated blocks; NULL in a decoder that looks at no pictures.
    const CrossArchitecture* cross() const { return cross_ ? &*cross_ : nullptr; }
    // [cross()->before.size()]: their weights, without keys and values, which are the pictures'.
    const std::vector<LayerWeights>& blocks() const { return blocks_; }

    // The tower and its connector; NULL in a model of text alone.
    const VisionModel* vision() const { return vision_ ? &*vision_ : nullptr; }
    // Numbers of what stands in the place of a token: of the stream, and of what taps give to it.
    size_t row_size() const {
        return vision_ && !cross_ ? vision_->embedding_size : architecture_.hidden_size;
    }
    // Of a picture whose rows see each other, so that they are read together; 0: none do.
    size_t picture_rows() const {
        return vision_ && vision_->architecture.bidirectional ? vision_->architecture.tokens() : 0;
    }

    uint64_t parameters() const;    // weights without padding
    uint64_t decode_bytes() const;  // bytes of weights read for one decoded token

    // A session is about to read the weights.
    void expect_use() const;

  private:
    std::unique_ptr<MappedFile> mapping_;  // NULL if the bytes are somebody else's
    GgufFile file_;
    Architecture architecture_;
    PackedMatrix embedding_;
    Norm embedding_norm_;
    const float* learned_positions_;
    std::vector<LayerWeights> layers_;
    Norm output_norm_;
    Linear head_;
    const float* inverse_frequencies_;
    const float* alibi_slopes_;
    std::optional<CrossArchitecture> cross_;
    std::vector<LayerWeights> blocks_;
    std::optional<VisionModel> vision_;

    Model(std::unique_ptr<MappedFile> mapping, const uint8_t* bytes, size_t size);
    void read_positions();
};

}  // namespace awqe
