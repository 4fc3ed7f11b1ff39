// A context as bytes, so that a prompt need not be read again: by another session, after a restart,
// on another machine. Owns the layout of those bytes and every check of them; the keys and values
// in them are the backend's, and since all backends compute the same bits, so are they.
//
//     header | tokens u32 [count] | turns u32 [count], where a position has three numbers |
//     logits f32 [vocabulary], if there are any | keys and values
//
// They may be those of positions in the middle, which go behind the same text only: contexts that
// begin alike can then share what they begin with.
//
// Little-endian. Bytes that were saved by another release, with another model or type of cache, or
// that are damaged, are refused before anything is changed: a context is exact or it is not there.
#include <algorithm>
#include <cstring>

#include "native/failure/failure.h"
#include "native/runtime/session.h"

namespace awqe {
namespace {

constexpr uint32_t kOnTensorCores = 1u << 16;
constexpr char kMagic[8] = {'A', 'W', 'Q', 'E', 'C', 'T', 'X', '\n'};

struct Header {
    char magic[8];
    char release[32];        // whose arithmetic it is; filled up with NUL
    char model[64];          // awq_edge.sha256: hexadecimal digits
    uint64_t description;    // hash of the decoder's description
    uint64_t before;         // hash of the tokens before `begin`
    uint32_t kv_type;        // as awqe_kv_type; kOnTensorCores more where prompts went there
    uint32_t begin;          // the first position
    uint32_t count;          // positions
    uint32_t has_logits;     // 0 or 1
    uint64_t content_bytes;  // behind the header
    uint64_t content_hash;   // of those
};
static_assert(sizeof(Header) == 152, "no padding");
static_assert(sizeof(AWQE_VERSION) <= sizeof(Header::release));

// Finds damage, not malice: 8 bytes at a time, each step a bijection of the state.
uint64_t hash_bytes(const uint8_t* bytes, size_t size, uint64_t hash = 0) {
    const auto mix = [&](uint64_t word) {
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    };
    size_t at = 0;
    for (; at + 8 <= size; at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + at, 8);
        mix(word);
    }
    uint64_t last = size;  // so that zeros at the end count
    for (; at < size; ++at) last = last << 8 | bytes[at];
    mix(last);
    return hash;
}

uint64_t hash_tokens(const uint32_t* tokens, size_t count) {
    return hash_bytes(reinterpret_cast<const uint8_t*>(tokens), count * sizeof(uint32_t));
}

template <class T>
uint64_t hash_value(const T& value, uint64_t hash) {
    uint8_t bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    return hash_bytes(bytes, sizeof(T), hash);
}

// Everything that decides about results beside the tensors.
uint64_t hash_of(const Architecture& a, uint64_t hash) {
    for (const uint32_t value :
         {a.layers, a.hidden_size, a.vocabulary_size, a.heads, a.kv_heads, a.head_size,
          a.feed_forward_size, uint32_t{a.tied_head}, uint32_t(a.norm), uint32_t(a.norm_places),
          uint32_t{a.final_norm}, uint32_t{a.embedding_norm}, uint32_t{a.parallel},
          uint32_t(a.position), uint32_t(a.qk_norm), uint32_t{a.gated}, uint32_t(a.activation)}) {
        hash = hash_value(value, hash);
    }
    for (const float value : {a.norm_epsilon, a.qkv_clamp, a.score_cap, a.logit_cap}) {
        hash = hash_value(value, hash);
    }
    for (const uint32_t section : a.rope_sections) hash = hash_value(section, hash);
    if (a.rope_interleaved) hash = hash_value(1u, hash);
    for (const uint32_t table : a.rope_tables) hash = hash_value(table, hash);
    for (const uint32_t window : a.sliding_windows) hash = hash_value(window, hash);
    if (a.experts != 0) {
        for (const uint32_t value : {a.experts, a.experts_per_token, a.expert_size,
                                     a.shared_expert_size, uint32_t(a.routing)}) {
            hash = hash_value(value, hash);
        }
        hash = hash_value(a.router_epsilon, hash);
        for (const uint32_t layer : a.expert_layers) hash = hash_value(layer, hash);
    }
    return hash;
}
uint64_t hash_of(const Model& model) {
    uint64_t hash = hash_of(model.architecture(), model.picture_rows());
    if (model.cross() == nullptr) return hash;
    hash = hash_of(model.cross()->form, hash);
    for (const uint32_t layer : model.cross()->before) hash = hash_value(layer, hash);
    return hash;
}

// What a header says of a session's contexts, apart from what each one holds.
Header header_of(const Model& model, const SequencePlan& plan) {
    Header header = {};
    std::memcpy(header.magic, kMagic, sizeof(kMagic));
    std::memcpy(header.release, AWQE_VERSION, sizeof(AWQE_VERSION));
    const std::string_view sha256 = model.file().find_entry("awq_edge.sha256")->value.as_string();
    std::memcpy(header.model, sha256.data(), std::min(sha256.size(), sizeof(header.model)));
    header.description = hash_of(model);
    header.kv_type = plan.kv_type == KvType::kF16 ? AWQE_KV_F16 : AWQE_KV_INT8;
    if (plan.on_tensor_cores) header.kv_type += kOnTensorCores;
    return header;
}

[[noreturn]] void damaged() {
    fail(AWQE_FILE_INVALID, "the saved context is damaged: read its text again");
}

}  // namespace

size_t Session::saved_bytes(size_t begin, size_t end) const {
    if (end == 0 || end > position_) {
        fail(AWQE_INVALID_ARGUMENT, "end is %zu, allowed are 1 to the %zu of the context", end,
             position());
    }
    if (begin >= end) {
        fail(AWQE_INVALID_ARGUMENT, "begin is %zu, which is not before the end, %zu", begin, end);
    }
    if (end < position_ && end < earliest()) {
        fail(AWQE_INVALID_ARGUMENT,
             "end is %zu, but the layers with a sliding window have kept what is needed from %zu "
             "on: save up to that or further",
             end, earliest());
    }
    for (const Seen& seen : pictures_) {
        if (seen.rows == nullptr || seen.position >= end) continue;
        fail(AWQE_UNSUPPORTED,
             "the context looks at pictures, which are not saved: read its text and the pictures "
             "again");
    }
    const size_t logits = saves_logits(end) ? model_.architecture().vocabulary_size : 0;
    const size_t words = turns_apart() ? 2 : 1;
    return sizeof(Header) + (end - begin) * words * sizeof(uint32_t) + logits * sizeof(float) +
           sequence_->saved_bytes(begin, end);
}

void Session::save(size_t begin, size_t end, uint8_t* bytes) const {
    Header header = header_of(model_, plan_);
    header.before = hash_tokens(arrays_.tokens, begin);
    header.begin = static_cast<uint32_t>(begin);
    header.count = static_cast<uint32_t>(end - begin);
    header.content_bytes = saved_bytes(begin, end) - sizeof(Header);
    header.has_logits = saves_logits(end) ? 1 : 0;
    uint8_t* const content = bytes + sizeof(Header);
    uint8_t* to = content;
    const auto append = [&](const void* from, size_t size) {
        std::memcpy(to, from, size);
        to += size;
    };
    append(arrays_.tokens + begin, header.count * sizeof(uint32_t));
    if (turns_apart()) append(arrays_.next_turns + begin, header.count * sizeof(uint32_t));
    if (header.has_logits != 0) {
        append(fetched_logits(), model_.architecture().vocabulary_size * sizeof(float));
    }
    sequence_->save(begin, end, to);
    header.content_hash = hash_bytes(content, header.content_bytes);
    std::memcpy(bytes, &header, sizeof(Header));
}

void Session::restore(const uint8_t* bytes, size_t size) {
    Header header;
    if (size < sizeof(Header) || std::memcmp(bytes, kMagic, sizeof(kMagic)) != 0) {
        fail(AWQE_FILE_INVALID, "these bytes are no saved context");
    }
    std::memcpy(&header, bytes, sizeof(Header));
    const Header own = header_of(model_, plan_);
    if (std::memcmp(header.release, own.release, sizeof(own.release)) != 0) {
        fail(AWQE_UNSUPPORTED,
             "the context was not saved by awq-edge %s, whose bits may differ: read its text again",
             AWQE_VERSION);
    }
    if (std::memcmp(header.model, own.model, sizeof(own.model)) != 0 ||
        header.description != own.description) {
        fail(AWQE_INVALID_ARGUMENT, "the context was saved with another model");
    }
    if ((header.kv_type ^ own.kv_type) == kOnTensorCores) {
        fail(AWQE_INVALID_ARGUMENT, "the context was saved with %s attention, this session's is %s",
             plan_.on_tensor_cores ? "exact" : "tensor",
             plan_.on_tensor_cores ? "tensor" : "exact");
    }
    if (header.kv_type != own.kv_type) {
        fail(AWQE_INVALID_ARGUMENT,
             "the context was saved with another type of cache than this session's %s",
             plan_.kv_type == KvType::kF16 ? "fp16" : "int8");
    }
    const size_t begin = header.begin, end = begin + header.count;
    if (end > plan_.positions) {
        fail(AWQE_CONTEXT_FULL, "the saved context has %zu tokens, this session has room for %zu",
             end, plan_.positions);
    }
    // Which pictures an earlier text looked at, no token tells.
    const bool seen = begin > 0 && !pictures_.empty();
    if (seen || (begin > 0 && begin != position_) ||
        header.before != hash_tokens(arrays_.tokens, begin)) {
        fail(AWQE_INVALID_ARGUMENT,
             "these %u tokens were saved behind another text than the %zu tokens of this context",
             header.count, position());
    }
    const size_t vocabulary = model_.architecture().vocabulary_size;
    const size_t token_bytes = header.count * sizeof(uint32_t);
    const size_t turn_bytes = turns_apart() ? token_bytes : 0;
    const size_t logits_bytes = header.has_logits != 0 ? vocabulary * sizeof(float) : 0;
    const uint8_t* const content = bytes + sizeof(Header);
    if (header.count == 0 || header.has_logits > 1 ||
        header.content_bytes != size - sizeof(Header) ||
        header.content_bytes !=
            token_bytes + turn_bytes + logits_bytes + sequence_->saved_bytes(begin, end) ||
        header.content_hash != hash_bytes(content, header.content_bytes)) {
        damaged();
    }
    for (size_t i = 0; i < header.count; ++i) {
        uint32_t token;
        std::memcpy(&token, content + i * sizeof(token), sizeof(token));
        if (token >= vocabulary && token != kNoToken) damaged();
    }
    const uint8_t* const saved_turns = content + token_bytes;
    for (size_t i = 0; i < turn_bytes / sizeof(uint32_t); ++i) {
        uint32_t next;
        std::memcpy(&next, saved_turns + i * sizeof(next), sizeof(next));
        if (next == 0 || next > end) damaged();
    }
    // From here on nothing fails.
    pictures_.clear();
    std::memcpy(arrays_.tokens + begin, content, token_bytes);
    std::memcpy(arrays_.next_turns + (turn_bytes > 0 ? begin : 0), saved_turns, turn_bytes);
    std::memcpy(arrays_.logits, saved_turns + turn_bytes, logits_bytes);
    sequence_->restore(begin, end, saved_turns + turn_bytes + logits_bytes);
    stored_ = begin == 0 ? end : std::max(stored_.load(), end);
    if (begin == 0 || !sequence_->saved_all(end)) floor_ = sequence_->saved_all(end) ? 0 : end;
    position_ = end;
    has_logits_ = header.has_logits != 0;
    kept_ = false;
}

}  // namespace awqe
