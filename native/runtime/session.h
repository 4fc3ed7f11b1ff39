// One conversation: its context, its memory, its threads and the kernels it runs. Owns the
// bookkeeping around forward(). Used by one thread at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "awq_edge.h"
#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/forward.h"
#include "native/runtime/kv_cache.h"
#include "native/runtime/model.h"
#include "native/runtime/sampler.h"
#include "native/runtime/team_size.h"
#include "native/runtime/thread_pool.h"

namespace awqe {

// Options with every default filled in.
struct SessionPlan {
    size_t positions;  // of the context
    unsigned threads;
    unsigned prefill_threads;
    KvType kv_type;

    // Throws Failure with AWQE_INVALID_ARGUMENT. `options` may be NULL.
    SessionPlan(const Model& model, const awqe_session_options* options);

    KvPlan cache() const { return {positions, std::min(kBlockTokens, positions), kv_type}; }
};

// The table called `name`, or for NULL or "" the best one. Throws Failure with AWQE_UNSUPPORTED.
const KernelTable* table_for_session(const char* name);

class Session {
  public:
    // `kernels`: a table's name, or NULL or "" for the best one. Throws Failure.
    Session(std::shared_ptr<const Model> model, const SessionPlan& plan, const char* kernels);

    // Bytes that a session with this plan takes from the system, the threads' stacks apart.
    static size_t cache_bytes(const Model& model, const SessionPlan& plan);
    static size_t scratch_bytes(const Model& model, const SessionPlan& plan);

    const char* kernels() const { return kernels_->name; }
    unsigned threads(bool prefill) const { return prefill ? plan_.prefill_threads : plan_.threads; }
    // This and earliest() may be asked while another thread evaluates.
    size_t position() const { return position_; }
    // The lowest position, apart from 0, that truncate() can go back to.
    size_t earliest() const { return cache_.earliest(stored_); }

    // awqe_session_evaluate() in steps, between which the caller may do what it likes. begin()
    // checks the arguments, which are then the same for every step(); the caller has checked
    // nothing. step() reads the next block; `done` tokens were read before. Returns how many are
    // read now.
    void begin(const uint32_t* tokens, size_t count, uint32_t which);
    size_t step(const uint32_t* tokens, size_t count, uint32_t which, float* logits, size_t done);
    void truncate(size_t position);
    uint32_t sample(Sampler& sampler) const;
    void copy_tokens(uint32_t* tokens, size_t count) const;
    // As awqe_session_reusable() says.
    size_t reusable(const uint32_t* tokens, size_t count) const;

  private:
    // Everything that lies in the scratch region.
    struct Scratch {
        Scratch(const Model& model, const SessionPlan& plan, Arena arena);

        Activations activations;
        float* logits;     // [vocabulary]: of the last token evaluated
        uint32_t* tokens;  // [positions]: the context
        size_t bytes;
    };

    void check_tokens(const uint32_t* tokens, size_t count) const;
    void run(const Block& block);

    const std::shared_ptr<const Model> shared_model_;  // whoever closes it first
    const Model& model_;
    const SessionPlan plan_;
    const KernelTable* kernels_;
    KvCache cache_;
    PageRegion scratch_pages_;
    Scratch scratch_;
    ThreadPool pool_;
    TeamSize decode_team_;
    std::atomic<size_t> position_ = 0;
    std::atomic<size_t> stored_ = 0;  // positions that were ever stored since position 0
    bool has_logits_ = false;
};

}  // namespace awqe
