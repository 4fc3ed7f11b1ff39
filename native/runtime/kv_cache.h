// Keys and values of every position, as fp16 or as int8 with a scale per position and head. A
// head's positions follow each other, so that attention, which walks one head from the first
// position to the last, reads one sequential stream; interleaving heads would hand it head_size
// numbers out of every kv_heads * head_size.
//
// A layer with a sliding window keeps only what the window can reach from the block of tokens that
// is being computed: its rows are a ring, and position t lies in row t % rows. Owns the memory,
// which becomes resident position by position; knows nothing about what is valid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "native/kernels/attention/attention_f16.h"
#include "native/kernels/attention/attention_s8.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"
#include "native/runtime/arena.h"
#include "native/runtime/backend.h"
#include "native/runtime/model.h"

namespace awqe {

struct KvPlan {
    size_t positions;     // of the context
    size_t block_tokens;  // that are stored together, before attention reads any of them
    KvType type;
};

// The first of the positions below `count` that a layer with this window (0: none) still reads.
inline size_t first_saved_position(size_t window, size_t count) {
    return window == 0 || count < window ? 0 : count - (window - 1);
}

class KvCache {
  public:
    KvCache(const Architecture& a, const KvPlan& plan);

    // Bytes that a cache takes from the system.
    static size_t bytes(const Architecture& a, const KvPlan& plan);

    KvType type() const { return plan_.type; }

    // One head's keys and values for attention.
    CacheF16 f16(size_t layer, size_t head) const;
    CacheS8 s8(size_t layer, size_t head) const;

    // Where a position's key and value are stored: half [head_size] each.
    struct F16Rows {
        uint16_t* key;
        uint16_t* value;
    };
    F16Rows f16_rows(size_t layer, size_t head, size_t position) const;
    // The same for int8: one row of one group, whose sum goes to *sum, which nobody needs.
    struct S8Rows {
        QuantizedRows key;
        QuantizedRows value;
    };
    S8Rows s8_rows(size_t layer, size_t head, size_t position, int32_t* sum) const;

    // The lowest position, apart from 0, that may be computed next when positions [0, stored) have
    // been: below it a window would reach what the ring has overwritten.
    size_t earliest(size_t stored) const;

    // What computing from position `end` on needs of positions [begin, end), as Sequence has it:
    // layer by layer, head by head, keys, values, then the scales of int8, each in position order;
    // of a layer with a window those of the last window - 1 positions.
    bool saved_all(size_t end) const;
    size_t saved_bytes(size_t begin, size_t end) const;
    void save(size_t begin, size_t end, uint8_t* bytes) const;
    void restore(size_t begin, size_t end, const uint8_t* bytes);

  private:
    // One layer: [kv_heads, rows, head_size] of either type, scales [kv_heads, rows].
    struct Layer {
        size_t rows;
        size_t window;
        uint16_t* half_keys;
        uint16_t* half_values;
        int8_t* keys;
        int8_t* values;
        float* key_scales;
        float* value_scales;
    };
    template <class Visit>
    void visit_saved(size_t begin, size_t end, const Visit& visit) const;

    static std::vector<Layer> take_layers(const Architecture& a, const KvPlan& plan, Arena& arena);

    KvPlan plan_;
    size_t heads_;
    size_t head_size_;
    PageRegion pages_;
    std::vector<Layer> layers_;
};

}  // namespace awqe
