// From a container's keys to the form of gated blocks; see cross_architecture.h.
#include "native/runtime/cross_architecture.h"

#include <algorithm>
#include <cinttypes>

#include "native/failure/failure.h"
#include "native/format/layouts.h"
#include "native/runtime/keys.h"

namespace awqe {
namespace {

constexpr const char* kLayers = "awq_edge.cross.layers";
constexpr uint32_t kMaxHeadSize = 256;

void check_none(const GgufFile& file) {
    for (const Entry& entry : file.entries()) {
        if (entry.key.rfind("awq_edge.cross.", 0) != 0) continue;
        fail(AWQE_FILE_INVALID, "there is a key %s, although there is no %s", entry.key.c_str(),
             kLayers);
    }
}

std::vector<uint32_t> read_places(const GgufFile& file, uint32_t layers) {
    std::vector<uint32_t> before;
    const std::vector<uint32_t> blocks = need_per_layer(file, kLayers, layers);
    for (uint32_t layer = 0; layer < layers; ++layer) {
        if (blocks[layer] == 1) before.push_back(layer);
    }
    const bool sound = std::all_of(blocks.begin(), blocks.end(), [](uint32_t b) { return b <= 1; });
    if (before.empty() || !sound) {
        fail(AWQE_FILE_INVALID, "key %s must hold 0 or 1 for each layer, and 1 for some", kLayers);
    }
    return before;
}

// A decoder's layer of this width, without positions, limits or norms behind its branches.
Architecture read_form(const GgufFile& file, uint32_t hidden_size) {
    Architecture form = {};
    form.hidden_size = hidden_size;
    form.heads = need_size(file, "awq_edge.cross.heads", kMaxColumns);
    form.kv_heads = form.heads;
    form.head_size = need_size(file, "awq_edge.cross.head_size", kMaxHeadSize);
    form.feed_forward_size = need_size(file, "awq_edge.cross.feed_forward_size", kMaxColumns);
    form.norm = need_word<NormKind>(file, "awq_edge.cross.norm",
                                    {{"rms", NormKind::kRms}, {"layer", NormKind::kLayer}});
    form.norm_epsilon = need_positive(file, "awq_edge.cross.norm_epsilon");
    form.norm_places = NormPlaces::kBefore;
    form.qk_norm = flag_or(file, "awq_edge.cross.qk_norm", false) ? QkNorm::kHead : QkNorm::kNone;
    form.gated =
        need_word<bool>(file, "awq_edge.cross.feed_forward", {{"gated", true}, {"plain", false}});
    form.activation = need_word<Activation>(file, "awq_edge.cross.activation",
                                            {{"silu", Activation::kSilu},
                                             {"gelu", Activation::kGelu},
                                             {"gelu_tanh", Activation::kGeluTanh},
                                             {"relu", Activation::kRelu}});
    if (form.head_size % 2 != 0) {
        fail(AWQE_FILE_INVALID, "key awq_edge.cross.head_size is %u, it must be even",
             form.head_size);
    }
    const uint64_t query_size = uint64_t{form.heads} * form.head_size;
    if (query_size > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.cross.heads times awq_edge.cross.head_size is %" PRIu64
             ", at most %u is allowed",
             query_size, kMaxColumns);
    }
    return form;
}

}  // namespace

std::optional<CrossArchitecture> read_cross_architecture(const GgufFile& file,
                                                         const Architecture& decoder) {
    if (file.find_entry(kLayers) == nullptr) {
        check_none(file);
        return std::nullopt;
    }
    if (decoder.parallel || decoder.experts != 0) {
        fail(AWQE_FILE_INVALID,
             "there is a key %s, although the decoder has %s: no known model has both", kLayers,
             decoder.parallel ? "parallel branches" : "experts");
    }
    CrossArchitecture cross = {read_places(file, decoder.layers),
                               read_form(file, decoder.hidden_size)};
    if (cross.row_size() > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "a picture's row has %" PRIu64 " numbers in the gated blocks, at most %u are allowed",
             cross.row_size(), kMaxColumns);
    }
    return cross;
}

}  // namespace awqe
