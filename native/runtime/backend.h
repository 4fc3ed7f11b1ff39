// The seam between a session and what computes. A session knows tokens, positions, logits and
// limits; a backend knows weights on its device, caches, scratch memory and how to share the work.
// Owns the words of the two; no arithmetic and no memory. Logits of every backend are those of
// native/ARITHMETIC.md.
//
// A block is rows: each is one position of one sequence, with a cache of its own. So one pass
// decodes many sequences, reads prompts beside them and takes embeddings of images, and the weights
// are read once for all of them. A row's result is what it would be alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace awqe {

class PictureRows;

// Rows that go through the layers together. Long enough to use each weight that was unpacked many
// times, short enough for the activations of a wide feed-forward (128 x 14336 floats) to stay in a
// cache of some megabytes.
constexpr size_t kBlockTokens = 128;
// Of any backend: a GPU needs more of them to be busy.
constexpr size_t kMostBlockRows = 2048;
// Of a picture whose rows see each other.
constexpr size_t kMostPictureRows = 1024;

enum class KvType { kF16, kS8 };

// What a session asks for, every default filled in.
struct SequencePlan {
    size_t positions;  // of the context
    KvType kv_type;
    unsigned threads;          // for one row at a time
    unsigned prefill_threads;  // for several
    uint32_t gpu_layers;       // awqe_session_options.gpu_layers
    bool on_tensor_cores;      // the attention of prompts, on a GPU: not the contract's bits
};

// Logits of a sequence's last row that had Row::keeps_logits, where they were computed: what is
// most often asked of them is known without them. Both throw Failure.
class KeptLogits {
  public:
    // Of all tokens the likeliest, the lowest of equal ones.
    struct Likeliest {
        uint32_t token;
        uint32_t not_finite;  // the first one whose logit is not, or UINT32_MAX: all are
    };
    virtual Likeliest likeliest() const = 0;
    virtual void copy(float* logits) const = 0;  // float [vocabulary], to be filled

  protected:
    ~KeptLogits() = default;
};

// What a backend keeps of one sequence: keys and values of its positions. Knows nothing about which
// of them are valid. Used by one evaluation at a time.
class Sequence {
  public:
    virtual ~Sequence() = default;
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;

    // The lowest position, apart from 0, that may be computed next when positions [0, stored) have
    // been: a layer with a sliding window forgets.
    virtual size_t earliest(size_t stored) const = 0;

    // Of the keys and values that computing position `end` and those behind it needs, those from
    // `begin` on, as bytes: the same ones from every backend, for every length of the context.
    // saved_all() says whether they are those of all positions, so that the sequence can also go
    // back.
    virtual bool saved_all(size_t end) const = 0;
    virtual size_t saved_bytes(size_t begin, size_t end) const = 0;
    virtual void save(size_t begin, size_t end, uint8_t* bytes) const = 0;
    virtual void restore(size_t begin, size_t end, const uint8_t* bytes) = 0;

    // NULL where logits are always handed out: they are computed where they are read.
    virtual const KeptLogits* kept_logits() const { return nullptr; }

  protected:
    Sequence() = default;
};

// By what the angles of a row turn, where a position has three numbers: those of a token are equal,
// those of a picture's row tell its place.
struct Turns {
    size_t numbers[3];
};

struct Row {
    Sequence* sequence;
    size_t position;
    size_t seen;  // it sees the positions before this one: its own is the last of them,
                  // but within a picture whose rows see each other
    Turns turns;
    uint32_t token;              // below the size of the vocabulary
    const float* embedding;      // float [Model::row_size()], in the place of the token's; or NULL
    float* logits;               // float [vocabulary], to be filled; or NULL
    bool keeps_logits;           // its sequence keeps them, in the place of that
    float* hidden;               // float [hidden], to be filled with what the head reads; or NULL
    const PictureRows* picture;  // that gated blocks look at; or NULL: they see none
};

// Rows of one sequence come in ascending positions without a gap, the first of them right behind
// what was computed or truncated to before; other rows may stand between them. Rows that give
// something come last, behind the others those with logits, kept or not. A row that sees beyond its
// own position comes with all that it sees.
struct Block {
    const Row* rows;
    size_t count;   // 1 ... block_rows(), or the rows of one picture that see each other
    size_t wanted;  // rows with logits or hidden
    size_t heads;   // rows with logits
};

class Backend {
  public:
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    virtual const char* name() const = 0;  // of what a session reports: a kernel table, a device

    // The most rows of a block, at most kMostBlockRows.
    virtual size_t block_rows() const = 0;

    // Whether rows may see beyond their own position.
    virtual bool sees_ahead() const = 0;

    // Bytes that a sequence takes, and those of working memory that sequences use in turn.
    virtual size_t cache_bytes(const SequencePlan& plan) const = 0;
    virtual size_t scratch_bytes(const SequencePlan& plan) const = 0;

    // A sequence at position 0, and whatever evaluating it will need. Throws Failure. The backend
    // outlives it.
    virtual std::unique_ptr<Sequence> open(const SequencePlan& plan) = 0;

    // Computes keys, values and the logits that are wanted; returns when they are there. Safe from
    // any thread as long as no two calls meet in a sequence. Throws Failure with
    // AWQE_OUT_OF_MEMORY; the sequences can then be gone on with.
    virtual void evaluate(const Block& block) = 0;

  protected:
    Backend() = default;
};

}  // namespace awqe
