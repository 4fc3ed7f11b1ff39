// From a container's keys to a decoder's description; see architecture.h.
#include "native/runtime/architecture.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <string>

#include "native/failure/failure.h"
#include "native/runtime/keys.h"

namespace awqe {
namespace {

constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxPosition = 1u << 24;  // up to there a position is exact as a float
constexpr uint32_t kMaxVocabulary = 1u << 24;
constexpr uint32_t kMaxHeadSize = 256;
constexpr uint32_t kMaxExperts = 1024;

void check_sha256(const GgufFile& file) {
    constexpr const char* kKey = "awq_edge.sha256";
    const std::string_view digits = need_entry(file, kKey, ValueType::kString).value.as_string();
    if (digits.size() != 64 ||
        digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) {
        fail(AWQE_FILE_INVALID, "key %s does not hold 64 lower-case hexadecimal digits", kKey);
    }
}

// Tables are numbered without gaps, so that there are as many as the largest number says.
std::vector<uint32_t> rope_tables_or_one(const GgufFile& file, uint32_t layers) {
    constexpr const char* kKey = "awq_edge.decoder.rope_tables";
    if (file.find_entry(kKey) == nullptr) return std::vector<uint32_t>(layers, 0);
    std::vector<uint32_t> tables = need_per_layer(file, kKey, layers);
    for (const uint32_t table : tables) {
        if (table >= layers) {
            fail(AWQE_FILE_INVALID, "key %s names table %u, there are at most %u for %u layers",
                 kKey, table, layers, layers);
        }
    }
    return tables;
}

constexpr const char* kRopeInterleaved = "awq_edge.decoder.rope_interleaved";

std::vector<uint32_t> rope_sections_or_none(const GgufFile& file, uint32_t head_size) {
    constexpr const char* kKey = "awq_edge.decoder.rope_sections";
    if (file.find_entry(kKey) == nullptr) return {};
    const Entry& entry = need_u32_array(file, kKey);
    if (entry.value.count != 3) {
        fail(AWQE_FILE_INVALID, "key %s has %" PRIu64 " elements, a position three numbers", kKey,
             entry.value.count);
    }
    std::vector<uint32_t> sections;
    uint64_t total = 0;
    for (uint32_t i = 0; i < 3; ++i) {
        sections.push_back(static_cast<uint32_t>(entry.value.element(i).as_unsigned()));
        total += sections.back();
    }
    if (total != head_size / 2) {
        fail(AWQE_FILE_INVALID, "key %s holds %" PRIu64 " angles, a head of %u has %u", kKey, total,
             head_size, head_size / 2);
    }
    return sections;
}

// The second and the third number have angles 1 and 2, 4 and 5 and so on, the first all others.
void check_turns(const Architecture& a) {
    const std::vector<uint32_t>& sections = a.rope_sections;
    if (sections.empty()) {
        fail(AWQE_FILE_INVALID, "%s is true, although there is no awq_edge.decoder.rope_sections",
             kRopeInterleaved);
    }
    for (uint32_t i : {1, 2}) {
        if (sections[i] == 0 || 3 * (sections[i] - 1) + i < a.head_size / 2) continue;
        fail(AWQE_FILE_INVALID,
             "%s is true, and the numbers of a position have no %u turns among %u angles",
             kRopeInterleaved, sections[i], a.head_size / 2);
    }
}

// Keys that say how the file was made: the runtime does not use them, but whoever lists a file
// relies on them.
void check_provenance(const GgufFile& file) {
    check_sha256(file);
    need_positive(file, "awq_edge.decoder.rope_theta");
    need_entry(file, "awq_edge.decoder.rope_scaling", ValueType::kString);
    allow_entry(file, "awq_edge.decoder.local_rope_theta", ValueType::kFloat32);
    allow_entry(file, "awq_edge.decoder.local_rope_scaling", ValueType::kString);
    need_entry(file, "awq_edge.quantization.method", ValueType::kString);
    need_entry(file, "awq_edge.quantization.bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.group_size", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.head_bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.embedding_bits", ValueType::kUint32);
    need_entry(file, "awq_edge.quantization.tool_version", ValueType::kString);
    allow_entry(file, "awq_edge.quantization.calibration_sha256", ValueType::kString);
    allow_entry(file, "general.name", ValueType::kString);
    allow_entry(file, "tokenizer.huggingface.json", ValueType::kString);
    allow_entry(file, "tokenizer.chat_template", ValueType::kString);
    allow_entry(file, "tokenizer.ggml.bos_token_id", ValueType::kUint32);
    allow_entry(file, "tokenizer.ggml.eos_token_id", ValueType::kUint32);
    allow_entry(file, "tokenizer.ggml.add_bos_token", ValueType::kBool);
    constexpr const char* kEndIds = "awq_edge.tokenizer.eos_token_ids";
    if (file.find_entry(kEndIds) != nullptr) need_u32_array(file, kEndIds);
}

// The sizes of the attention fit each other.
void check_heads(const Architecture& a) {
    if (a.heads % a.kv_heads != 0) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.heads is %u, which is not a multiple of the %u in "
             "awq_edge.decoder.kv_heads",
             a.heads, a.kv_heads);
    }
    if (a.head_size % 2 != 0) {
        fail(AWQE_FILE_INVALID, "key awq_edge.decoder.head_size is %u, it must be even",
             a.head_size);
    }
    const uint64_t query_size = uint64_t{a.heads} * a.head_size;
    if (query_size > kMaxColumns) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.heads times awq_edge.decoder.head_size is %" PRIu64
             ", at most %u is "
             "allowed",
             query_size, kMaxColumns);
    }
}

QkNorm read_qk_norm(const GgufFile& file) {
    constexpr const char* kKind = "awq_edge.decoder.qk_norm_kind";
    if (!need_bool(file, "awq_edge.decoder.qk_norm")) {
        if (file.find_entry(kKind) != nullptr) {
            fail(AWQE_FILE_INVALID, "there is a key %s, although awq_edge.decoder.qk_norm is false",
                 kKind);
        }
        return QkNorm::kNone;
    }
    return word_or_first<QkNorm>(
        file, kKind,
        {{"head", QkNorm::kHead}, {"heads", QkNorm::kHeads}, {"width", QkNorm::kWidth}});
}

void read_positions(const GgufFile& file, Architecture& a) {
    a.position = word_or_first<PositionKind>(file, "awq_edge.decoder.position",
                                             {{"rotary", PositionKind::kRotary},
                                              {"learned", PositionKind::kLearned},
                                              {"alibi", PositionKind::kAlibi}});
    if (a.position == PositionKind::kRotary) {
        a.rope_tables = rope_tables_or_one(file, a.layers);
        a.rope_sections = rope_sections_or_none(file, a.head_size);
        a.rope_interleaved = flag_or(file, kRopeInterleaved, false);
        if (a.rope_interleaved) check_turns(a);
        return;
    }
    for (const char* key : {"awq_edge.decoder.rope_tables", "awq_edge.decoder.rope_sections",
                            kRopeInterleaved, "awq_edge.decoder.rotary_size"}) {
        if (file.find_entry(key) != nullptr) {
            fail(AWQE_FILE_INVALID,
                 "there is a key %s, although awq_edge.decoder.position is not rotary", key);
        }
    }
    if (a.position == PositionKind::kAlibi && a.score_cap != 0) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.score_cap is %g, although awq_edge.decoder.position is alibi: no "
             "known model has both",
             static_cast<double>(a.score_cap));
    }
}

void read_norms(const GgufFile& file, Architecture& a) {
    a.norm = word_or_first<NormKind>(file, "awq_edge.decoder.norm",
                                     {{"rms", NormKind::kRms}, {"layer", NormKind::kLayer}});
    a.norm_epsilon = need_positive(file, "awq_edge.decoder.norm_epsilon");
    a.norm_places = word_or_first<NormPlaces>(file, "awq_edge.decoder.norm_places",
                                              {{"before", NormPlaces::kBefore},
                                               {"after", NormPlaces::kAfter},
                                               {"both", NormPlaces::kBoth},
                                               {"stream", NormPlaces::kStream}});
    a.final_norm = flag_or(file, "awq_edge.decoder.final_norm", true);
    a.embedding_norm = flag_or(file, "awq_edge.decoder.embedding_norm", false);
    a.parallel = flag_or(file, "awq_edge.decoder.parallel", false);
    if (a.parallel && a.norm_places != NormPlaces::kBefore) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.parallel is true, but awq_edge.decoder.norm_places is not before");
    }
}

// Experts take the place of a plain gated feed-forward behind one norm.
void check_experts(const Architecture& a) {
    if (a.experts_per_token > a.experts) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.experts_per_token is %u, which is more than the %u in "
             "awq_edge.decoder.experts",
             a.experts_per_token, a.experts);
    }
    if (a.routing == Routing::kSparsemixer && a.experts_per_token != 2) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.experts_per_token is %u, but awq_edge.decoder.routing is "
             "sparsemixer, which chooses 2",
             a.experts_per_token);
    }
    const bool any = std::any_of(a.expert_layers.begin(), a.expert_layers.end(),
                                 [](uint32_t has) { return has == 1; });
    const bool sound = std::all_of(a.expert_layers.begin(), a.expert_layers.end(),
                                   [](uint32_t has) { return has <= 1; });
    if (!any || !sound) {
        fail(AWQE_FILE_INVALID,
             "key awq_edge.decoder.expert_layers must hold 0 or 1 for each layer, and 1 for some");
    }
    if (!a.gated || a.parallel || a.norm_places != NormPlaces::kBefore) {
        fail(AWQE_FILE_INVALID,
             "awq_edge.decoder.experts is %u, which goes with gated feed-forwards behind a norm "
             "alone, not with plain or parallel ones or other places of norms",
             a.experts);
    }
}

void read_experts(const GgufFile& file, Architecture& a) {
    constexpr const char* kExperts = "awq_edge.decoder.experts";
    constexpr const char* kLayers = "awq_edge.decoder.expert_layers";
    constexpr const char* kShared = "awq_edge.decoder.shared_expert_size";
    if (file.find_entry(kExperts) == nullptr) {
        for (const char* key :
             {"awq_edge.decoder.experts_per_token", "awq_edge.decoder.expert_size",
              "awq_edge.decoder.routing", "awq_edge.decoder.router_epsilon", kShared, kLayers}) {
            if (file.find_entry(key) != nullptr) {
                fail(AWQE_FILE_INVALID, "there is a key %s, although there is no %s", key,
                     kExperts);
            }
        }
        a.expert_layers.assign(a.layers, 0);
        return;
    }
    a.experts = need_size(file, kExperts, kMaxExperts);
    a.experts_per_token = need_size(file, "awq_edge.decoder.experts_per_token", kMaxExperts);
    a.expert_size = need_size(file, "awq_edge.decoder.expert_size", kMaxColumns);
    if (file.find_entry(kShared) != nullptr) {
        a.shared_expert_size = need_size(file, kShared, kMaxColumns);
    }
    a.routing = word_or_first<Routing>(file, "awq_edge.decoder.routing",
                                       {{"softmax", Routing::kSoftmax},
                                        {"softmax_renormalised", Routing::kSoftmaxRenormalised},
                                        {"sparsemixer", Routing::kSparsemixer}});
    a.router_epsilon = limit_or_none(file, "awq_edge.decoder.router_epsilon");
    a.expert_layers = file.find_entry(kLayers) == nullptr ? std::vector<uint32_t>(a.layers, 1)
                                                          : need_per_layer(file, kLayers, a.layers);
    check_experts(a);
}

}  // namespace

uint32_t Architecture::rope_table_count() const {
    return rope_tables.empty() ? 0 : *std::max_element(rope_tables.begin(), rope_tables.end()) + 1;
}

Architecture read_architecture(const GgufFile& file) {
    check_provenance(file);
    Architecture a = {};
    a.layers = need_size(file, "awq_edge.decoder.layers", kMaxLayers);
    a.hidden_size = need_size(file, "awq_edge.decoder.hidden_size", kMaxColumns);
    a.vocabulary_size = need_size(file, "awq_edge.decoder.vocabulary_size", kMaxVocabulary);
    a.context_length = need_size(file, "awq_edge.decoder.context_length", kMaxPosition);
    a.heads = need_size(file, "awq_edge.decoder.heads", kMaxColumns);
    a.kv_heads = need_size(file, "awq_edge.decoder.kv_heads", kMaxColumns);
    a.head_size = need_size(file, "awq_edge.decoder.head_size", kMaxHeadSize);
    a.feed_forward_size = need_size(file, "awq_edge.decoder.feed_forward_size", kMaxColumns);
    check_heads(a);
    a.tied_head = need_bool(file, "awq_edge.decoder.tied_head");
    a.sliding_windows = need_per_layer(file, "awq_edge.decoder.sliding_windows", a.layers);
    read_norms(file, a);
    a.qk_norm = read_qk_norm(file);
    a.qkv_clamp = limit_or_none(file, "awq_edge.decoder.qkv_clamp");
    a.score_cap = limit_or_none(file, "awq_edge.decoder.score_cap");
    a.logit_cap = limit_or_none(file, "awq_edge.decoder.logit_cap");
    read_positions(file, a);
    a.gated = word_or_first<bool>(file, "awq_edge.decoder.feed_forward",
                                  {{"gated", true}, {"plain", false}});
    a.activation = need_word<Activation>(file, "awq_edge.decoder.activation",
                                         {{"silu", Activation::kSilu},
                                          {"gelu", Activation::kGelu},
                                          {"gelu_tanh", Activation::kGeluTanh},
                                          {"relu", Activation::kRelu}});
    read_experts(file, a);
    return a;
}

}  // namespace awqe
