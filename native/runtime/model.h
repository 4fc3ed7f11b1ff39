// An opened model: the mapped file, what the decoder looks like, and its weights as named views.
// Checks the rules 7 and 11 of native/format/FORMAT.md section 4. Immutable after construction, so
// sessions on several threads may share one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "native/format/gguf_reader.h"
#include "native/format/layouts.h"
#include "native/format/mapped_file.h"
#include "native/kernels/activation/activation_f32.h"

namespace awqe {

// The keys awq_edge.decoder.*: all there is to know about a decoder apart from its weights.
struct Architecture {
    uint32_t layers;
    uint32_t hidden_size;
    uint32_t vocabulary_size;
    uint32_t context_length;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    float norm_epsilon;
    Activation activation;  // of the gate
    bool qk_norm;
    bool tied_head;
    std::vector<uint32_t>
        sliding_windows;  // [layers]: positions a token sees, itself included; 0 = all

    uint32_t query_size() const { return heads * head_size; }
    uint32_t key_size() const { return kv_heads * head_size; }
};

// A matrix with its bias: y = W x + bias.
struct Linear {
    PackedMatrix weight;  // [n, k]
    const float* bias;    // [n], or NULL
};

struct LayerWeights {
    const float* attention_norm;     // [hidden]
    Linear query;                    // [heads * head_size, hidden]
    Linear key;                      // [kv_heads * head_size, hidden]
    Linear value;                    // [kv_heads * head_size, hidden]
    const float* query_norm;         // [head_size], or NULL
    const float* key_norm;           // [head_size], or NULL
    Linear attention_output;         // [hidden, heads * head_size]
    const float* feed_forward_norm;  // [hidden]
    Linear gate;                     // [feed_forward, hidden]
    Linear up;                       // [feed_forward, hidden]
    Linear down;                     // [hidden, feed_forward]
};

class Model {
  public:
    // Maps the file at `path`. Throws Failure.
    explicit Model(const char* path);
    // Reads a file that lies in memory: bytes [size], 64-byte aligned, which must outlive the
    // model.
    Model(const uint8_t* bytes, size_t size);

    const GgufFile& file() const { return file_; }
    const Architecture& architecture() const { return architecture_; }

    const PackedMatrix& embedding() const { return embedding_; }  // [vocabulary, hidden]
    const std::vector<LayerWeights>& layers() const { return layers_; }
    const float* output_norm() const { return output_norm_; }  // [hidden]
    const Linear& head() const { return head_; }               // [vocabulary, hidden]
    const float* inverse_frequencies() const { return inverse_frequencies_; }  // [head_size / 2]

    uint64_t parameters() const;    // weights without padding
    uint64_t decode_bytes() const;  // bytes of weights read for one decoded token

    // A session is about to read the weights.
    void expect_use() const;

  private:
    std::unique_ptr<MappedFile> mapping_;  // NULL if the bytes are somebody else's
    GgufFile file_;
    Architecture architecture_;
    PackedMatrix embedding_;
    std::vector<LayerWeights> layers_;
    const float* output_norm_;
    Linear head_;
    const float* inverse_frequencies_;

    Model(std::unique_ptr<MappedFile> mapping, const uint8_t* bytes, size_t size);
};

}  // namespace awqe
