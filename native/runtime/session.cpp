// Checking, the bookkeeping of a reading, truncating and sampling; see session.h.
#include "native/runtime/session.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "native/failure/failure.h"
#include "native/runtime/cpus.h"

namespace awqe {
namespace {

constexpr float kHalfOverflow = 65520.0f;  // rounds to infinity in half precision

}  // namespace

SequencePlan session_plan(const Model& model, const awqe_session_options* options) {
    const awqe_session_options defaults = {};
    const awqe_session_options& o = options == nullptr ? defaults : *options;
    const uint32_t trained = model.architecture().context_length;
    if (o.context_length > trained) {
        fail(AWQE_INVALID_ARGUMENT,
             "options.context_length is %u, but the model was trained for %u positions",
             o.context_length, trained);
    }
    if (o.kv_type != AWQE_KV_F16 && o.kv_type != AWQE_KV_INT8) {
        fail(AWQE_INVALID_ARGUMENT, "options.kv_type is %u, allowed are 0 (fp16) and 1 (int8)",
             o.kv_type);
    }
    if (o.device > AWQE_DEVICE_CUDA) {
        fail(AWQE_INVALID_ARGUMENT, "options.device is %u, allowed are 0 to 2", o.device);
    }
    if (o.attention > AWQE_ATTENTION_TENSOR) {
        fail(AWQE_INVALID_ARGUMENT, "options.attention is %u, allowed are 0 (exact) and 1 (tensor)",
             o.attention);
    }
    if (o.attention == AWQE_ATTENTION_TENSOR && o.device != AWQE_DEVICE_CUDA) {
        fail(AWQE_INVALID_ARGUMENT,
             "attention on tensor cores is what a GPU has: it goes with the device cuda, not with "
             "cpu or auto");
    }
    return {o.context_length == 0 ? trained : o.context_length,
            o.kv_type == AWQE_KV_F16 ? KvType::kF16 : KvType::kS8,
            thread_count(o.threads, "options.threads"),
            thread_count(o.prefill_threads, "options.prefill_threads"),
            o.gpu_layers,
            o.attention == AWQE_ATTENTION_TENSOR};
}

Session::Arrays::Arrays(const Model& model, const SequencePlan& plan, Arena arena)
    : logits(arena.take<float>(model.architecture().vocabulary_size)),
      tokens(arena.take<uint32_t>(plan.positions)),
      next_turns(
          arena.take<uint32_t>(model.architecture().rope_sections.empty() ? 0 : plan.positions)),
      bytes(arena.used()) {}

size_t Session::own_bytes(const Model& model, const SequencePlan& plan) {
    return Arrays(model, plan, Arena()).bytes;
}

Session::Place Session::place_of(const OpenModel& model, const SequencePlan& plan, uint32_t device,
                                 const char* kernels) {
    try {
        Backend& backend = model.backend(device, kernels, plan);
        return {backend, backend.open(plan)};
    } catch (const Failure& failure) {
        // A GPU that holds the model may have no room for another context.
        if (device != AWQE_DEVICE_AUTO || failure.status() != AWQE_OUT_OF_MEMORY) throw;
    }
    Backend& cpu = model.backend(AWQE_DEVICE_CPU, kernels, plan);
    return {cpu, cpu.open(plan)};
}

Session::Session(std::shared_ptr<const OpenModel> model, const SequencePlan& plan, uint32_t device,
                 const char* kernels)
    : Session(model, plan, place_of(*model, plan, device, kernels)) {}

Session::Session(std::shared_ptr<const OpenModel> model, const SequencePlan& plan, Place place)
    : open_model_(std::move(model)),
      model_(open_model_->model()),
      plan_(plan),
      backend_(place.backend),
      sequence_(std::move(place.sequence)),
      pages_(own_bytes(model_, plan), PageSize::kSmall),
      arrays_(model_, plan, Arena(pages_)) {}

void Session::check(const Reading& reading) const {
    if (reading.count == 0) fail(AWQE_INVALID_ARGUMENT, "there are no tokens to evaluate");
    if (reading.which > AWQE_LOGITS_ALL) {
        fail(AWQE_INVALID_ARGUMENT, "which is %u, allowed are 0 to 2", reading.which);
    }
    // Before anything is read: an array that is longer than the context may be no array at all.
    if (reading.count > plan_.positions - position_) {
        fail(AWQE_CONTEXT_FULL,
             "the context holds %zu of %zu tokens, there is no room for %zu more", position(),
             plan_.positions, reading.count);
    }
    const Architecture& a = model_.architecture();
    if (reading.tokens != nullptr) {
        for (size_t i = 0; i < reading.count; ++i) {
            if (reading.tokens[i] < a.vocabulary_size) continue;
            fail(AWQE_INVALID_ARGUMENT, "token %zu is %u, the model's vocabulary ends at %u", i,
                 reading.tokens[i], a.vocabulary_size - 1);
        }
    } else {
        check_picture(reading);
        const size_t size = model_.row_size();
        for (size_t i = 0; i < reading.count * size; ++i) {
            if (std::isfinite(reading.embeddings[i])) continue;
            fail(AWQE_INVALID_ARGUMENT, "embedding %zu holds a number that is not finite, at %zu",
                 i / size, i % size);
        }
    }
}

void Session::check_picture(const Reading& reading) const {
    const size_t count = reading.count;
    const size_t rows = model_.picture_rows();
    if (reading.columns != 0 && count % reading.columns != 0) {
        fail(AWQE_INVALID_ARGUMENT, "count is %zu, which is no whole number of rows of %zu", count,
             reading.columns);
    }
    if (rows == 0) return;
    if (count != rows) {
        fail(AWQE_INVALID_ARGUMENT,
             "count is %zu, but this model sees a picture in both directions: its %zu embeddings "
             "are read in one call",
             count, rows);
    }
    if (!backend_.sees_ahead()) {
        fail(AWQE_UNSUPPORTED,
             "this model sees a picture in both directions, which the GPU does not so far; use the "
             "CPU for its pictures");
    }
}

void Session::look_at(const float* rows, size_t count) {
    const CrossArchitecture* const cross = model_.cross();
    if (cross == nullptr) {
        fail(AWQE_UNSUPPORTED,
             "the layers of this model look at no pictures: its pictures are read as embeddings in "
             "the place of tokens, if it has a vision part");
    }
    const size_t tokens = model_.vision()->architecture.tokens();
    if (rows != nullptr && count != tokens) {
        fail(AWQE_INVALID_ARGUMENT, "count is %zu, but a picture of this model has %zu rows", count,
             tokens);
    }
    const size_t size = cross->row_size();
    for (size_t i = 0; rows != nullptr && i < count * size; ++i) {
        if (std::fabs(rows[i]) < kHalfOverflow) continue;  // NaN neither
        fail(AWQE_INVALID_ARGUMENT, "row %zu holds a number that half precision does not, at %zu",
             i / size, i % size);
    }
    std::unique_ptr<const PictureRows> made;
    if (rows != nullptr) made = std::make_unique<const PictureRows>(*cross, rows, count);
    while (!pictures_.empty() && pictures_.back().position >= position_) pictures_.pop_back();
    pictures_.push_back({position_, std::move(made)});
}

const PictureRows* Session::seen_at(size_t position) const {
    for (auto seen = pictures_.rbegin(); seen != pictures_.rend(); ++seen) {
        if (seen->position <= position) return seen->rows.get();
    }
    return nullptr;
}

void Session::begin(const Reading& reading, Session* next) {
    reading_ = reading;
    next_ = next;
    done_ = 0;
    if (turns_apart()) first_turn_ = position_ == 0 ? 0 : arrays_.next_turns[position_ - 1];
    has_logits_ = false;
    keeps_ = draws_likeliest_ && reading.logits == nullptr && sequence_->kept_logits() != nullptr;
}

Turns Session::turns(size_t index) const {
    if (reading_.columns == 0) {
        const size_t turn = first_turn_ + index;
        return {{turn, turn, turn}};
    }
    return {{first_turn_, first_turn_ + index / reading_.columns,
             first_turn_ + index % reading_.columns}};
}

size_t Session::next_turn(size_t index) const {
    if (reading_.columns == 0) return first_turn_ + index + 1;
    return first_turn_ + std::max(reading_.count / reading_.columns, reading_.columns);
}

bool Session::wants_logits(size_t index) const {
    const bool last = done_ + index + 1 == reading_.count;
    return wants_all() || (last && reading_.which != AWQE_LOGITS_NONE);
}

Row Session::row(size_t index) const {
    const size_t at = done_ + index;
    const Architecture& a = model_.architecture();
    Row row = {};
    row.sequence = sequence_.get();
    row.position = position_ + index;
    row.seen = reads_whole() ? position_ + reading_.count : row.position + 1;
    if (turns_apart()) row.turns = turns(at);
    row.picture = seen_at(row.position);
    if (reading_.tokens != nullptr) {
        row.token = reading_.tokens[at];
    } else {
        row.embedding = reading_.embeddings + at * model_.row_size();
    }
    row.keeps_logits = keeps_ && wants_logits(index);
    if (wants_logits(index) && !keeps_) {
        row.logits = wants_all() ? reading_.logits + at * a.vocabulary_size : arrays_.logits;
    }
    if (wants_hidden()) row.hidden = reading_.hidden + at * a.hidden_size;
    return row;
}

void Session::prepare(size_t count) { stored_ = std::max(stored_.load(), position_ + count); }

void Session::advance(size_t count) {
    uint32_t* const context = arrays_.tokens + position_;
    if (reading_.tokens != nullptr) {
        std::copy_n(reading_.tokens + done_, count, context);
    } else {
        std::fill_n(context, count, kNoToken);
    }
    for (size_t i = 0; turns_apart() && i < count; ++i) {
        arrays_.next_turns[position_ + i] = static_cast<uint32_t>(next_turn(done_ + i));
    }
    position_ += count;
    done_ += count;
    if (remaining() > 0 || reading_.which == AWQE_LOGITS_NONE) return;
    has_logits_ = true;
    kept_ = keeps_;
    const size_t vocabulary = model_.architecture().vocabulary_size;
    if (wants_all()) {
        std::copy_n(reading_.logits + (reading_.count - 1) * vocabulary, vocabulary,
                    arrays_.logits);
    } else if (reading_.logits != nullptr) {
        std::copy_n(arrays_.logits, vocabulary, reading_.logits);
    }
}

void Session::truncate(size_t position) {
    if (position > position_) {
        fail(AWQE_INVALID_ARGUMENT, "position is %zu, but the context holds only %zu tokens",
             position, position_.load());
    }
    if (position > 0 && position < position_ && position < earliest()) {
        fail(AWQE_INVALID_ARGUMENT,
             "position is %zu, but the layers with a sliding window have kept what is needed from "
             "%zu on: go back to that or further, or to 0",
             position, earliest());
    }
    if (position == 0) stored_ = floor_ = 0;
    if (position < position_) has_logits_ = false;  // they belong to a token that is forgotten
    while (!pictures_.empty() && pictures_.back().position >= position) pictures_.pop_back();
    position_ = position;
}

void Session::copy_tokens(uint32_t* tokens, size_t count) const {
    if (count > position_) {
        fail(AWQE_INVALID_ARGUMENT, "count is %zu, but the context holds only %zu tokens", count,
             position());
    }
    std::copy_n(arrays_.tokens, count, tokens);
}

size_t Session::reusable(const uint32_t* tokens, size_t count) const {
    // What pictures were looked at, no token tells.
    const size_t known = pictures_.empty() ? position() : pictures_[0].position;
    const size_t most = std::min({count, position(), known});
    size_t shared = 0;
    while (shared < most && tokens[shared] == arrays_.tokens[shared] &&
           tokens[shared] != kNoToken) {
        ++shared;
    }
    const bool drawn_from = shared == position_ && has_logits_;
    const size_t reusable = shared == count && count > 0 && !drawn_from ? count - 1 : shared;
    // Layers with a sliding window may have forgotten what is needed from there on.
    return reusable == position_ || reusable >= earliest() ? reusable : 0;
}

void Session::require_logits() const {
    if (!has_logits_) {
        fail(AWQE_INVALID_ARGUMENT,
             "there are no logits to sample from: evaluate at least one token with logits first");
    }
}

const float* Session::fetched_logits() const {
    if (kept_) sequence_->kept_logits()->copy(arrays_.logits);
    kept_ = false;
    return arrays_.logits;
}

uint32_t Session::sample(Sampler& sampler, const float* added) const {
    require_logits();
    draws_likeliest_ = added == nullptr && sampler.takes_likeliest();
    if (kept_ && draws_likeliest_) {
        const KeptLogits::Likeliest likeliest = sequence_->kept_logits()->likeliest();
        if (likeliest.not_finite != UINT32_MAX) fail_not_finite(likeliest.not_finite);
        return likeliest.token;
    }
    return sampler.sample(fetched_logits(), vocabulary(), arrays_.tokens, position_, added);
}

void Session::copy_logits(float* logits) const {
    require_logits();
    draws_likeliest_ = false;
    std::copy_n(fetched_logits(), vocabulary(), logits);
}

}  // namespace awqe
