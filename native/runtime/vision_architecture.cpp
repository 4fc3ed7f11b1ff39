// From a container's keys to a vision part's description; see vision_architecture.h.
#include "native/runtime/vision_architecture.h"

#include <cinttypes>

#include "native/failure/failure.h"
#include "native/format/layouts.h"
#include "native/runtime/backend.h"
#include "native/runtime/keys.h"

namespace awqe {
namespace {

constexpr const char* kLayers = "awq_edge.vision.layers";
constexpr const char* kConnectorSize = "awq_edge.vision.connector_size";
constexpr const char* kConnectorActivation = "awq_edge.vision.connector_activation";
constexpr const char* kConnectorNormEpsilon = "awq_edge.vision.connector_norm_epsilon";
constexpr const char* kResampler = "awq_edge.vision.resampler.layers";
constexpr const char* kForBlocks = "awq_edge.vision.connector is cross";
constexpr const char* kByColumns = "awq_edge.vision.by_columns";
constexpr const char* kTaps = "awq_edge.vision.taps";
constexpr const char* kKeepClass = "awq_edge.vision.keep_class";
constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxHeadSize = 256;
constexpr uint32_t kMaxSide = 1u << 14;     // pixels
constexpr uint32_t kMaxRows = 1u << 16;     // of the tower: patches and a class token
constexpr uint32_t kMaxPositionGrid = 256;  // whose squares are as many rows

void check_absent(const GgufFile& file, const char* key, const char* reason) {
    if (file.find_entry(key) == nullptr) return;
    fail(AWQE_FILE_INVALID, "there is a key %s, although %s", key, reason);
}

void check_no_vision(const GgufFile& file) {
    for (const Entry& entry : file.entries()) {
        if (entry.key.rfind("awq_edge.vision.", 0) != 0) continue;
        check_absent(file, entry.key.c_str(), "there is no awq_edge.vision.layers");
    }
}

Activation need_activation(const GgufFile& file, const char* key) {
    return need_word<Activation>(file, key,
                                 {{"quick_gelu", Activation::kQuickGelu},
                                  {"gelu", Activation::kGelu},
                                  {"gelu_tanh", Activation::kGeluTanh},
                                  {"silu", Activation::kSilu},
                                  {"relu", Activation::kRelu}});
}

void read_tower(const GgufFile& file, VisionArchitecture& a) {
    a.layers = need_size(file, kLayers, kMaxLayers);
    a.hidden_size = need_size(file, "awq_edge.vision.hidden_size", kMaxColumns);
    a.heads = need_size(file, "awq_edge.vision.heads", kMaxColumns);
    a.head_size = need_size(file, "awq_edge.vision.head_size", kMaxHeadSize);
    a.feed_forward_size = need_size(file, "awq_edge.vision.feed_forward_size", kMaxColumns);
    a.norm_epsilon = need_positive(file, "awq_edge.vision.norm_epsilon");
    a.activation = need_activation(file, "awq_edge.vision.activation");
    a.class_token = flag_or(file, "awq_edge.vision.class_token", false);
    a.pre_norm = flag_or(file, "awq_edge.vision.pre_norm", false);
    a.post_norm = flag_or(file, "awq_edge.vision.post_norm", false);
    a.rotary = word_or_first<bool>(file, "awq_edge.vision.position",
                                   {{"learned", false}, {"rotary", true}});
    a.rms = word_or_first<bool>(file, "awq_edge.vision.norm", {{"layer", false}, {"rms", true}});
    a.gated = word_or_first<bool>(file, "awq_edge.vision.feed_forward",
                                  {{"plain", false}, {"gated", true}});
    const uint64_t query_size = uint64_t{a.heads} * a.head_size;
    if (query_size > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.heads times awq_edge.vision.head_size is %" PRIu64
             ", at most %u is allowed",
             query_size, kMaxColumns);
    }
}

void read_picture(const GgufFile& file, VisionArchitecture& a) {
    a.image_size = need_size(file, "awq_edge.vision.image_size", kMaxSide);
    a.patch_size = need_size(file, "awq_edge.vision.patch_size", kMaxSide);
    if (a.patch_size > a.image_size) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.patch_size is %u, which is more than the %u in "
             "awq_edge.vision.image_size",
             a.patch_size, a.image_size);
    }
    const uint64_t columns = uint64_t{3} * a.patch_size * a.patch_size;
    if (columns > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.patch_size is %u, so that a patch has %" PRIu64
             " numbers; at most %u are allowed",
             a.patch_size, columns, kMaxColumns);
    }
    const uint64_t rows = uint64_t{a.grid()} * a.grid() + (a.class_token ? 1 : 0);
    if (rows > kMaxRows && !a.rotary) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.image_size is %u and awq_edge.vision.patch_size %u, which gives "
             "%" PRIu64 " rows; at most %u are allowed",
             a.image_size, a.patch_size, rows, kMaxRows);
    }
}

void read_grid(const GgufFile& file, VisionArchitecture& a) {
    a.pool = size_or(file, "awq_edge.vision.pool", kMaxSide, 1);
    if (a.grid() % a.pool != 0) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.pool is %u, which does not divide the %u patches on a side", a.pool,
             a.grid());
    }
    a.regroup = size_or(file, "awq_edge.vision.regroup", kMaxSide, 1);
    if (a.regroup > a.pooled_grid()) {
        fail(AWQE_FILE_INVALID, "awq_edge.vision.regroup is %u, but a side has %u rows", a.regroup,
             a.pooled_grid());
    }
    const uint64_t columns = uint64_t{a.regroup} * a.regroup * a.hidden_size;
    if (columns > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.regroup is %u, so that the connector reads %" PRIu64
             " numbers; at most %u are allowed",
             a.regroup, columns, kMaxColumns);
    }
    a.by_columns = flag_or(file, kByColumns, false);
}

void read_connector(const GgufFile& file, VisionArchitecture& a) {
    a.connector_norm = word_or_first<ConnectorNorm>(file, "awq_edge.vision.connector_norm",
                                                    {{"none", ConnectorNorm::kNone},
                                                     {"layer", ConnectorNorm::kLayer},
                                                     {"rms", ConnectorNorm::kRms}});
    if (a.connector_norm == ConnectorNorm::kNone) {
        check_absent(file, kConnectorNormEpsilon, "awq_edge.vision.connector_norm is none");
    } else {
        a.connector_norm_epsilon = need_positive(file, kConnectorNormEpsilon);
    }
    enum class Kind { kLinear, kMlp, kCross };
    const Kind kind =
        need_word<Kind>(file, "awq_edge.vision.connector",
                        {{"linear", Kind::kLinear}, {"mlp", Kind::kMlp}, {"cross", Kind::kCross}});
    a.for_blocks = kind == Kind::kCross;
    if (kind == Kind::kMlp) {
        a.connector_size = need_size(file, kConnectorSize, kMaxColumns);
        a.connector_activation = file.find_entry(kConnectorActivation) == nullptr
                                     ? Activation::kGelu
                                     : need_activation(file, kConnectorActivation);
    } else {
        const char* const why = a.for_blocks ? kForBlocks : "awq_edge.vision.connector is linear";
        check_absent(file, kConnectorSize, why);
        check_absent(file, kConnectorActivation, why);
        check_absent(file, kTaps, why);
    }
}

void read_taps(const GgufFile& file, VisionArchitecture& a) {
    if (file.find_entry(kTaps) == nullptr) return;
    const Entry& list = need_u32_array(file, kTaps);
    for (uint64_t i = 0; i < list.value.count; ++i) {
        const auto layer = static_cast<uint32_t>(list.value.element(i).as_unsigned());
        if (layer >= a.layers || (!a.taps.empty() && layer <= a.taps.back())) {
            fail(AWQE_FILE_INVALID,
                 "key %s names layer %u at index %" PRIu64
                 "; they ascend, and the tower has %u layers",
                 kTaps, layer, i, a.layers);
        }
        a.taps.push_back(layer);
    }
}

// What goes with towers that turn, and with no other.
void read_rotary(const GgufFile& file, VisionArchitecture& a) {
    constexpr const char* kWindow = "awq_edge.vision.window";
    constexpr const char* kFullLayers = "awq_edge.vision.full_layers";
    constexpr const char* kPositionGrid = "awq_edge.vision.position_grid";
    if (!a.rotary) {
        check_absent(file, kPositionGrid, "awq_edge.vision.position is learned");
        check_absent(file, kWindow, "awq_edge.vision.position is learned");
        check_absent(file, kFullLayers, "awq_edge.vision.position is learned");
        return;
    }
    if (a.head_size % 4 != 0) {
        fail(
            AWQE_FILE_INVALID,
            "awq_edge.vision.head_size is %u, although awq_edge.vision.position is rotary: half of "
            "a head's angles turn by rows, half by columns",
            a.head_size);
    }
    if (a.class_token || a.pool != 1 || a.by_columns ||
        a.image_size % (a.patch_size * a.regroup) != 0) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.position is rotary, which goes with no class_token, no pool, no "
             "by_columns and an image_size that is a multiple of patch_size times regroup");
    }
    a.position_grid = size_or(file, kPositionGrid, kMaxPositionGrid, 0);
    a.window = size_or(file, kWindow, kMaxSide, 0);
    if (a.window == 0) {
        check_absent(file, kFullLayers, "there is no awq_edge.vision.window");
        return;
    }
    if (file.find_entry(kFullLayers) == nullptr) return;
    const Entry& list = need_u32_array(file, kFullLayers);
    for (uint64_t i = 0; i < list.value.count; ++i) {
        a.full_layers.push_back(static_cast<uint32_t>(list.value.element(i).as_unsigned()));
    }
}

void read_use(const GgufFile& file, VisionArchitecture& a) {
    constexpr const char* kBidirectional = "awq_edge.vision.bidirectional";
    a.bidirectional = flag_or(file, kBidirectional, false);
    if (a.bidirectional && a.rotary) {
        fail(AWQE_FILE_INVALID,
             "%s is true, although awq_edge.vision.position is rotary: no known model has both",
             kBidirectional);
    }
    if (a.bidirectional && a.tokens() > kMostPictureRows) {
        fail(AWQE_FILE_INVALID,
             "%s is true, and a picture becomes %u embeddings; at most %zu can see each other",
             kBidirectional, a.tokens(), kMostPictureRows);
    }
}

void read_resampler(const GgufFile& file, VisionArchitecture& a) {
    if (file.find_entry(kResampler) == nullptr) {
        for (const Entry& entry : file.entries()) {
            if (entry.key.rfind("awq_edge.vision.resampler.", 0) != 0) continue;
            check_absent(file, entry.key.c_str(), "there is no awq_edge.vision.resampler.layers");
        }
        return;
    }
    ResamplerArchitecture r = {};
    r.layers = need_size(file, kResampler, kMaxLayers);
    r.rows = need_size(file, "awq_edge.vision.resampler.rows", kMaxRows);
    r.heads = need_size(file, "awq_edge.vision.resampler.heads", kMaxColumns);
    r.head_size = need_size(file, "awq_edge.vision.resampler.head_size", kMaxHeadSize);
    r.feed_forward_size =
        need_size(file, "awq_edge.vision.resampler.feed_forward_size", kMaxColumns);
    r.activation = need_activation(file, "awq_edge.vision.resampler.activation");
    r.norm_epsilon = need_positive(file, "awq_edge.vision.resampler.norm_epsilon");
    r.qk_norm = flag_or(file, "awq_edge.vision.resampler.qk_norm", false);
    const uint64_t query_size = uint64_t{r.heads} * r.head_size;
    if (query_size > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.vision.resampler.heads times awq_edge.vision.resampler.head_size is %" PRIu64
             ", at most %u is allowed",
             query_size, kMaxColumns);
    }
    a.resampler = r;
}

// What stands between a tower and rows of a text does not stand before gated blocks.
void check_blocks(const GgufFile& file, const VisionArchitecture& a) {
    constexpr const char* kNotCross = "awq_edge.vision.connector is not cross";
    if (!a.for_blocks) {
        check_absent(file, kKeepClass, kNotCross);
        check_absent(file, kResampler, kNotCross);
        return;
    }
    for (const char* key :
         {"awq_edge.vision.post_norm", "awq_edge.vision.pool", "awq_edge.vision.regroup",
          kByColumns, "awq_edge.vision.connector_norm", "awq_edge.vision.bidirectional"}) {
        check_absent(file, key, kForBlocks);
    }
    if (!a.class_token) check_absent(file, kKeepClass, "there is no class token");
}

}  // namespace

std::optional<VisionArchitecture> read_vision_architecture(const GgufFile& file) {
    if (file.find_entry(kLayers) == nullptr) {
        check_no_vision(file);
        return std::nullopt;
    }
    VisionArchitecture a = {};
    read_tower(file, a);
    read_picture(file, a);
    read_grid(file, a);
    read_rotary(file, a);
    read_connector(file, a);
    read_taps(file, a);
    a.keep_class = flag_or(file, kKeepClass, false);
    read_resampler(file, a);
    check_blocks(file, a);
    read_use(file, a);
    // What only those use who prepare pictures and prompts.
    allow_entry(file, "awq_edge.vision.family", ValueType::kString);
    allow_entry(file, "awq_edge.vision.preprocessing", ValueType::kString);
    allow_entry(file, "awq_edge.vision.prompt", ValueType::kString);
    allow_entry(file, "awq_edge.quantization.vision_bits", ValueType::kUint32);
    allow_entry(file, "awq_edge.quantization.vision_group_size", ValueType::kUint32);
    allow_entry(file, "awq_edge.quantization.calibration_images_sha256", ValueType::kString);
    return a;
}

}  // namespace awqe
