// Evaluating, truncating and sampling; see session.h. A prompt goes through forward() in blocks, a
// single token as a block of one.
#include "native/runtime/session.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "native/failure/failure.h"
#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"
#include "native/runtime/cpus.h"

namespace awqe {
namespace {

constexpr uint32_t kMaxThreads = 1024;  // catches a negative number that became unsigned

unsigned thread_count(uint32_t asked, const char* name) {
    if (asked > kMaxThreads) {
        fail(AWQE_INVALID_ARGUMENT, "options.%s is %u, allowed are 0 to %u", name, asked,
             kMaxThreads);
    }
    return asked == 0 ? default_threads() : asked;
}

// How often the system has taken the core from this thread before it was willing to give it up.
long interruptions() {
    rusage usage = {};
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

}  // namespace

const KernelTable* table_for_session(const char* name) {
    std::string problem;
    const KernelTable* table = choose_kernels(name, cpu_features(), &problem);
    if (table == nullptr) fail(AWQE_UNSUPPORTED, "%s", problem.c_str());
    return table;
}

SessionPlan::SessionPlan(const Model& model, const awqe_session_options* options) {
    const uint32_t trained = model.architecture().context_length;
    const uint32_t asked = options == nullptr ? 0 : options->context_length;
    if (asked > trained) {
        fail(AWQE_INVALID_ARGUMENT,
             "options.context_length is %u, but the model was trained for %u positions", asked,
             trained);
    }
    positions = asked == 0 ? trained : asked;
    threads = thread_count(options == nullptr ? 0 : options->threads, "threads");
    prefill_threads =
        thread_count(options == nullptr ? 0 : options->prefill_threads, "prefill_threads");
    const uint32_t asked_type = options == nullptr ? uint32_t{AWQE_KV_F16} : options->kv_type;
    if (asked_type != AWQE_KV_F16 && asked_type != AWQE_KV_INT8) {
        fail(AWQE_INVALID_ARGUMENT, "options.kv_type is %u, allowed are 0 (fp16) and 1 (int8)",
             asked_type);
    }
    kv_type = asked_type == AWQE_KV_F16 ? KvType::kF16 : KvType::kS8;
}

Session::Scratch::Scratch(const Model& model, const SessionPlan& plan, Arena arena)
    : activations(model, std::min(kBlockTokens, plan.positions),
                  std::max(plan.threads, plan.prefill_threads), arena),
      logits(arena.take<float>(model.architecture().vocabulary_size)),
      tokens(arena.take<uint32_t>(plan.positions)),
      bytes(arena.used()) {}

size_t Session::cache_bytes(const Model& model, const SessionPlan& plan) {
    return KvCache::bytes(model.architecture(), plan.cache());
}

size_t Session::scratch_bytes(const Model& model, const SessionPlan& plan) {
    return Scratch(model, plan, Arena()).bytes;
}

Session::Session(std::shared_ptr<const Model> model, const SessionPlan& plan, const char* kernels)
    : shared_model_(std::move(model)),
      model_(*shared_model_),
      plan_(plan),
      kernels_(table_for_session(kernels)),
      cache_(model_.architecture(), plan.cache()),
      scratch_pages_(scratch_bytes(model_, plan), PageSize::kSmall),
      scratch_(model_, plan, Arena(scratch_pages_)),
      pool_(std::max(plan.threads, plan.prefill_threads)),
      decode_team_(plan.threads) {
    model_.expect_use();
}

void Session::check_tokens(const uint32_t* tokens, size_t count) const {
    // First: an array that is longer than the context may be no array at all.
    if (count > plan_.positions - position_) {
        fail(AWQE_CONTEXT_FULL,
             "the context holds %zu of %zu tokens, there is no room for %zu more", position(),
             plan_.positions, count);
    }
    const uint32_t vocabulary = model_.architecture().vocabulary_size;
    for (size_t i = 0; i < count; ++i) {
        if (tokens[i] >= vocabulary) {
            fail(AWQE_INVALID_ARGUMENT, "token %zu is %u, the model's vocabulary ends at %u", i,
                 tokens[i], vocabulary - 1);
        }
    }
}

void Session::run(const Block& block) {
    const auto body = [&](Team& team) {
        forward(model_, *kernels_, block, cache_, scratch_.activations, team);
    };
    if (block.count > 1) {
        pool_.run(plan_.prefill_threads, body);
        return;
    }
    const long before = interruptions();
    const auto start = std::chrono::steady_clock::now();
    pool_.run(decode_team_.members(), body);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    decode_team_.record(seconds.count(), interruptions() - before);
}

void Session::begin(const uint32_t* tokens, size_t count, uint32_t which) {
    if (count == 0) fail(AWQE_INVALID_ARGUMENT, "there are no tokens to evaluate");
    if (which > AWQE_LOGITS_ALL) {
        fail(AWQE_INVALID_ARGUMENT, "which is %u, allowed are 0 to 2", which);
    }
    check_tokens(tokens, count);
    has_logits_ = false;
}

size_t Session::step(const uint32_t* tokens, size_t count, uint32_t which, float* logits,
                     size_t done) {
    const size_t vocabulary = model_.architecture().vocabulary_size;
    const bool all = which == AWQE_LOGITS_ALL && logits != nullptr;
    Block block = {};
    block.tokens = tokens + done;
    block.count = std::min(kBlockTokens, count - done);
    block.position = position_;
    done += block.count;
    const bool last = done == count;
    block.wanted = all ? block.count : last && which != AWQE_LOGITS_NONE ? 1 : 0;
    block.logits = all ? logits + (done - block.count) * vocabulary : scratch_.logits;
    stored_ = std::max(stored_.load(), position_ + block.count);
    run(block);
    std::copy_n(block.tokens, block.count, scratch_.tokens + position_);
    position_ += block.count;
    if (!last || which == AWQE_LOGITS_NONE) return done;
    has_logits_ = true;
    if (all) {
        std::copy_n(logits + (count - 1) * vocabulary, vocabulary, scratch_.logits);
    } else if (logits != nullptr) {
        std::copy_n(scratch_.logits, vocabulary, logits);
    }
    return done;
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
    if (position == 0) stored_ = 0;
    if (position < position_) has_logits_ = false;  // they belong to a token that is forgotten
    position_ = position;
}

void Session::copy_tokens(uint32_t* tokens, size_t count) const {
    if (count > position_) {
        fail(AWQE_INVALID_ARGUMENT, "count is %zu, but the context holds only %zu tokens", count,
             position());
    }
    std::copy_n(scratch_.tokens, count, tokens);
}

size_t Session::reusable(const uint32_t* tokens, size_t count) const {
    const size_t most = std::min(count, position());
    const size_t shared =
        static_cast<size_t>(std::mismatch(tokens, tokens + most, scratch_.tokens).first - tokens);
    const bool drawn_from = shared == position_ && has_logits_;
    const size_t reusable = shared == count && count > 0 && !drawn_from ? count - 1 : shared;
    // Layers with a sliding window may have forgotten what is needed from there on.
    return reusable == position_ || reusable >= earliest() ? reusable : 0;
}

uint32_t Session::sample(Sampler& sampler) const {
    if (!has_logits_) {
        fail(AWQE_INVALID_ARGUMENT,
             "there are no logits to sample from: evaluate at least one token with logits first");
    }
    return sampler.sample(scratch_.logits, model_.architecture().vocabulary_size, scratch_.tokens,
                          position_);
}

}  // namespace awqe
