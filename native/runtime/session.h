// One conversation: its tokens, its position, its logits and its limits. Computing is the backend's
// (backend.h). Used by one thread at a time.
//
// A session reads in steps: begin() takes what is to be read; then, block by block, batch.cpp asks
// for rows(), has them computed and tells advance(). Between two steps a session is whole.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "awq_edge.h"
#include "native/runtime/arena.h"
#include "native/runtime/backend.h"
#include "native/runtime/model.h"
#include "native/runtime/open_model.h"
#include "native/runtime/picture_rows.h"
#include "native/runtime/sampler.h"

namespace awqe {

constexpr uint32_t kNoToken = UINT32_MAX;  // in the context, where an embedding was

// Options with every default filled in. Throws Failure with AWQE_INVALID_ARGUMENT. `options` may be
// NULL.
SequencePlan session_plan(const Model& model, const awqe_session_options* options);

// What a session reads in one call.
struct Reading {
    const uint32_t* tokens;   // [count], or NULL:
    const float* embeddings;  // [count, Model::row_size()]
    size_t count;
    size_t columns;  // of a picture, row by row; 0: what is read has one after the other
    uint32_t which;  // awqe_logits
    float* logits;   // as awqe_session_evaluate() has it; may be NULL
    float* hidden;   // [count, hidden], or NULL
};

class Session {
  public:
    // `device`: an awqe_device; `kernels`: a table's name, or NULL or "" for the best one. Throws
    // Failure.
    Session(std::shared_ptr<const OpenModel> model, const SequencePlan& plan, uint32_t device,
            const char* kernels);

    // Bytes that a session takes beside what its backend counts.
    static size_t own_bytes(const Model& model, const SequencePlan& plan);

    Backend& backend() const { return backend_; }
    unsigned threads(bool prefill) const { return prefill ? plan_.prefill_threads : plan_.threads; }
    // This and earliest() may be asked while another thread evaluates.
    size_t position() const { return position_; }
    // The lowest position, apart from 0, that truncate() can go back to.
    size_t earliest() const { return std::max(sequence_->earliest(stored_), floor_.load()); }

    void truncate(size_t position);
    // added: [vocabulary] or NULL, as Sampler::sample() says.
    uint32_t sample(Sampler& sampler, const float* added = nullptr) const;
    void copy_logits(float* logits) const;  // [vocabulary]
    size_t vocabulary() const { return model_.architecture().vocabulary_size; }
    void copy_tokens(uint32_t* tokens, size_t count) const;
    // As awqe_session_reusable() says.
    size_t reusable(const uint32_t* tokens, size_t count) const;

    // From the next position on, gated blocks look at a picture: float [count, row size], as its
    // encoding gives it; or at none, if rows is NULL. Throws Failure.
    void look_at(const float* rows, size_t count);

    // The positions [begin, end) as bytes, and back: see saved_context.cpp.
    size_t saved_bytes(size_t begin, size_t end) const;
    void save(size_t begin, size_t end, uint8_t* bytes) const;
    void restore(const uint8_t* bytes, size_t size);

    // Throws Failure for what can never be read; the caller has checked nothing.
    void check(const Reading& reading) const;
    // Takes a reading that was checked. `next`: the session that is evaluated together with this
    // one, or NULL; they have one backend.
    void begin(const Reading& reading, Session* next);
    Session* next() const { return next_; }
    // How much of the reading is still to come.
    size_t remaining() const { return reading_.count - done_; }
    // Of the row that is `index` from the next one on.
    bool wants_logits(size_t index) const;
    bool wants_hidden() const { return reading_.hidden != nullptr; }
    // What is read is a picture whose rows see each other: all of it in one block, and alone.
    bool reads_whole() const { return reading_.tokens == nullptr && model_.picture_rows() > 0; }
    Row row(size_t index) const;
    // Before and after the next `count` rows are computed.
    void prepare(size_t count);
    void advance(size_t count);

  private:
    // Everything that lies in the session's own region.
    struct Arrays {
        Arrays(const Model& model, const SequencePlan& plan, Arena arena);

        float* logits;     // [vocabulary]: after the last token
        uint32_t* tokens;  // [positions]: the context
        // [positions], where a position has three numbers: those of a token behind each one.
        uint32_t* next_turns;
        size_t bytes;
    };

    // Where the session computes: a backend, and its place there.
    struct Place {
        Backend& backend;
        std::unique_ptr<Sequence> sequence;
    };
    static Place place_of(const OpenModel& model, const SequencePlan& plan, uint32_t device,
                          const char* kernels);
    Session(std::shared_ptr<const OpenModel> model, const SequencePlan& plan, Place place);

    void check_picture(const Reading& reading) const;
    bool turns_apart() const { return !model_.architecture().rope_sections.empty(); }
    // The numbers of the row that is `index` from the beginning of the reading, and of a token
    // behind it.
    Turns turns(size_t index) const;
    size_t next_turn(size_t index) const;
    // A picture, or none, that is looked at from a position on.
    struct Seen {
        size_t position;
        std::unique_ptr<const PictureRows> rows;
    };

    void require_logits() const;
    const float* fetched_logits() const;  // [vocabulary]
    const PictureRows* seen_at(size_t position) const;
    bool saves_logits(size_t end) const { return has_logits_ && end == position_; }

    bool wants_all() const {
        return reading_.which == AWQE_LOGITS_ALL && reading_.logits != nullptr;
    }

    const std::shared_ptr<const OpenModel> open_model_;
    const Model& model_;
    const SequencePlan plan_;
    Backend& backend_;
    const std::unique_ptr<Sequence> sequence_;
    PageRegion pages_;
    Arrays arrays_;
    std::atomic<size_t> position_ = 0;
    std::atomic<size_t> stored_ = 0;  // positions that were ever stored since position 0
    std::atomic<size_t> floor_ = 0;   // what a restored context can go back to, apart from 0
    std::vector<Seen> pictures_;      // in ascending positions
    bool has_logits_ = false;
    mutable bool kept_ = false;  // they are where they were computed so far
    // What was drawn last was the likeliest token, and so probably the next one will be.
    mutable bool draws_likeliest_ = true;
    bool keeps_ = false;  // the reading's logits are kept where they are computed
    Reading reading_ = {};
    Session* next_ = nullptr;
    size_t done_ = 0;        // of the reading
    size_t first_turn_ = 0;  // of a token in its place
};

}  // namespace awqe
