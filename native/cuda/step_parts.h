// What the parts of step.h share: its arrays between the operations. Owns their sizes; step.cpp
// and experts.cpp compute in them.
#pragma once

#include <algorithm>

#include "native/cuda/step.h"

namespace awqe::cuda {

using awqe_cuda::kLikeliestNumbers;
using awqe_cuda::LogitPart;
using awqe_cuda::Partials;

constexpr size_t kSlicedRows = 16;  // up to here slices of few rows read less than a tile
constexpr size_t kPromptRows = 16;  // fewer rows of a run are attended chunk by chunk
constexpr size_t kPartialBytes = size_t{64} << 20;
// How kernels/quantize.cuh's norm_stream() has a row take up a branch.
constexpr int kNormInPlace = 0;
constexpr int kAddNormed = 1;
constexpr int kNormSum = 2;

// Rows of a pass that experts were chosen for, in the order of the experts.
struct Choices {
    unsigned* rows;
    float* weights;
};

// Everything between the operations, in one buffer.
struct Step::Arrays {
    Row* rows;
    unsigned* wanted;
    unsigned* arrivals;  // [rows, heads], zero between kernels
    float* residual;
    float* kept;  // rows of the residual stream of which something is wanted
    float* query;
    float* key;
    float* value;
    float* attended;
    float* tap;           // of a layer: what pictures' rows take up
    unsigned char* axes;  // [head_size / 2], or NULL: all angles turn by the position
    float* branch;        // what a branch gives, where the stream does not take it up at once
    float* gate;
    float* up;
    float* cosines;
    float* sines;
    // Of mixtures of experts.
    float* normed;          // [rows, hidden]: what the router and the experts read
    float* chosen;          // [rows, hidden]: those of one expert
    float* mixed;           // [rows, hidden]: the weighted sum
    float* router_logits;   // [rows, experts + 1]: the last is the shared expert's
    Choices choices;        // [rows, experts_per_token]
    float* shared_weights;  // [rows]

    float* logits;
    LogitPart* logit_parts;  // [kSlicedRows, pieces of a vocabulary]
    signed char* codes;
    int2* side;
    Partials partials;
    size_t partial_rows;
    size_t most_rows;
    size_t bytes = 0;
    Buffer memory;
    PinnedBuffer staged_rows;    // Row [rows]
    PinnedBuffer staged_stream;  // float [rows, hidden], behind layers of somebody else
    PinnedBuffer staged_wanted;  // unsigned [2, rows]: of logits, of what the head reads
    PinnedBuffer staged_logits;  // float [kFewRows, vocabulary]
    // Likeliest [2, rows]: of those that keep their logits, by whether the position is odd.
    PinnedBuffer staged_likeliest;
    // Of mixtures of experts: what the arrays of these names hold.
    PinnedBuffer staged_router_logits;
    PinnedBuffer staged_choice_rows;
    PinnedBuffer staged_choice_weights;
    PinnedBuffer staged_shared_weights;

    Arrays(const Architecture& a, size_t m, size_t taps, Address base) : most_rows(m) {
        const auto take = [&]<class T>(T*& pointer, size_t count) {
            pointer = reinterpret_cast<T*>(base + bytes);
            bytes += round_up(count * sizeof(T), 256);
        };
        const size_t widest = round_up(std::max({a.hidden_size, a.feed_forward_size, a.expert_size,
                                                 a.shared_expert_size, a.query_size()}),
                                       kUnitInputs);
        take(rows, m);
        take(wanted, m);
        take(arrivals, m * a.heads);
        take(residual, m * a.hidden_size);
        take(kept, m * a.hidden_size);
        take(query, m * a.query_size());
        take(key, m * a.key_size());
        take(value, m * a.key_size());
        take(attended, m * a.query_size());
        take(tap, taps > 0 ? m * a.hidden_size : 0);
        take(axes, a.rope_sections.empty() ? 0 : a.head_size / 2);
        if (a.rope_sections.empty()) axes = nullptr;
        const bool branches = a.parallel || a.norm_places != NormPlaces::kBefore || a.experts != 0;
        take(branch, branches ? m * a.hidden_size : 0);
        const size_t width = std::max({a.feed_forward_size, a.expert_size, a.shared_expert_size});
        take(gate, m * width);
        take(up, m * width);
        take(cosines, m * a.rope_table_count() * (a.head_size / 2));
        take(sines, m * a.rope_table_count() * (a.head_size / 2));
        const size_t mixtures = a.experts == 0 ? 0 : m;
        take(normed, mixtures * a.hidden_size);
        take(chosen, mixtures * a.hidden_size);
        take(mixed, mixtures * a.hidden_size);
        take(router_logits, mixtures * (a.experts + 1));
        take(choices.rows, mixtures * a.experts_per_token);
        take(choices.weights, mixtures * a.experts_per_token);
        take(shared_weights, mixtures);
        const size_t some = std::min(m, kSlicedRows);
        take(logits, some * a.vocabulary_size);
        take(logit_parts, some * divided(a.vocabulary_size, kLikeliestNumbers));
        take(codes, m * widest);
        take(side, m * (widest / 32));
        partials.chunks = static_cast<int>(divided(a.context_length, kAttentionChunk)) + 1;
        const size_t one = size_t{a.heads} * static_cast<size_t>(partials.chunks);
        partial_rows = std::clamp<size_t>(kPartialBytes / (one * (a.head_size + 2) * 4), 1,
                                          std::min(m, kPromptRows));
        take(partials.largest, partial_rows * one);
        take(partials.weight, partial_rows * one);
        take(partials.values, partial_rows * one * a.head_size);
    }
};

}  // namespace awqe::cuda
