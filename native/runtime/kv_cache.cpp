// Where each layer's rows lie; see kv_cache.h.
#include "native/runtime/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "native/format/layouts.h"

namespace awqe {
namespace {

// Rows of a layer: whole chunks of attention, so that each lies in one piece.
size_t rows_of_layer(size_t window, const KvPlan& plan) {
    if (window == 0 || window >= plan.positions) return plan.positions;
    // The first token of a block reaches back `window` positions when its last one is stored.
    return std::min(plan.positions, round_up(window + plan.block_tokens, kAttentionChunk));
}

}  // namespace

std::vector<KvCache::Layer> KvCache::take_layers(const Architecture& a, const KvPlan& plan,
                                                 Arena& arena) {
    std::vector<Layer> layers(a.layers);
    for (size_t i = 0; i < layers.size(); ++i) {
        Layer& layer = layers[i];
        layer.window = a.sliding_windows[i];
        layer.rows = rows_of_layer(layer.window, plan);
        const size_t count = a.kv_heads * layer.rows;
        if (plan.type == KvType::kF16) {
            layer.half_keys = arena.take<uint16_t>(count * a.head_size);
            layer.half_values = arena.take<uint16_t>(count * a.head_size);
        } else {
            layer.keys = arena.take<int8_t>(count * a.head_size);
            layer.values = arena.take<int8_t>(count * a.head_size);
            layer.key_scales = arena.take<float>(count);
            layer.value_scales = arena.take<float>(count);
        }
    }
    return layers;
}

size_t KvCache::bytes(const Architecture& a, const KvPlan& plan) {
    Arena counting;
    take_layers(a, plan, counting);
    return counting.used();
}

KvCache::KvCache(const Architecture& a, const KvPlan& plan)
    : plan_(plan),
      heads_(a.kv_heads),
      head_size_(a.head_size),
      pages_(bytes(a, plan), PageSize::kSmall) {
    Arena arena(pages_);
    layers_ = take_layers(a, plan, arena);
}

CacheF16 KvCache::f16(size_t layer, size_t head) const {
    const Layer& l = layers_[layer];
    const size_t begin = head * l.rows * head_size_;
    return {l.half_keys + begin, l.half_values + begin, head_size_, l.rows};
}

CacheS8 KvCache::s8(size_t layer, size_t head) const {
    const Layer& l = layers_[layer];
    const size_t row = head * l.rows;
    return {l.keys + row * head_size_,
            l.values + row * head_size_,
            l.key_scales + row,
            l.value_scales + row,
            head_size_,
            l.rows};
}

KvCache::F16Rows KvCache::f16_rows(size_t layer, size_t head, size_t position) const {
    const Layer& l = layers_[layer];
    const size_t begin = (head * l.rows + position % l.rows) * head_size_;
    return {l.half_keys + begin, l.half_values + begin};
}

KvCache::S8Rows KvCache::s8_rows(size_t layer, size_t head, size_t position, int32_t* sum) const {
    const Layer& l = layers_[layer];
    const size_t row = head * l.rows + position % l.rows;
    return {{l.keys + row * head_size_, l.key_scales + row, sum, head_size_, 1},
            {l.values + row * head_size_, l.value_scales + row, sum, head_size_, 1}};
}

size_t KvCache::earliest(size_t stored) const {
    size_t earliest = 0;
    for (const Layer& layer : layers_) {
        // Positions below stored - rows are gone; position p needs those from p + 1 - window on.
        if (stored > layer.rows) {
            earliest = std::max(earliest, stored - layer.rows + layer.window - 1);
        }
    }
    return earliest;
}

// Calls visit(memory, bytes) for each piece of memory that holds what is saved, in its order.
template <class Visit>
void KvCache::visit_saved(size_t begin, size_t end, const Visit& visit) const {
    for (const Layer& l : layers_) {
        const size_t first = std::max(begin, first_saved_position(l.window, end));
        for (size_t head = 0; head < heads_; ++head) {
            // Rows of `width` elements; in a ring the positions may come in two pieces.
            const auto rows = [&](auto* all, size_t width) {
                const size_t row = first % l.rows;
                const size_t before_end = std::min(end - first, l.rows - row);
                auto* const own = all + head * l.rows * width;
                visit(own + row * width, before_end * width * sizeof(*all));
                visit(own, (end - first - before_end) * width * sizeof(*all));
            };
            if (plan_.type == KvType::kF16) {
                rows(l.half_keys, head_size_);
                rows(l.half_values, head_size_);
            } else {
                rows(l.keys, head_size_);
                rows(l.values, head_size_);
                rows(l.key_scales, 1);
                rows(l.value_scales, 1);
            }
        }
    }
}

bool KvCache::saved_all(size_t end) const {
    return std::all_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
        return first_saved_position(layer.window, end) == 0;
    });
}

size_t KvCache::saved_bytes(size_t begin, size_t end) const {
    size_t total = 0;
    visit_saved(begin, end, [&](const void*, size_t bytes) { total += bytes; });
    return total;
}

void KvCache::save(size_t begin, size_t end, uint8_t* bytes) const {
    visit_saved(begin, end, [&](const void* memory, size_t size) {
        std::memcpy(bytes, memory, size);
        bytes += size;
    });
}

void KvCache::restore(size_t begin, size_t end, const uint8_t* bytes) {
    visit_saved(begin, end, [&](void* memory, size_t size) {
        std::memcpy(memory, bytes, size);
        bytes += size;
    });
}

}  // namespace awqe
