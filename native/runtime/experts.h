// The arrays of layers with a mixture of experts: which rows go to which expert, and what stands
// between the experts' matrices. Owns their sizes; experts.cpp computes in them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/kernels/quantize_act/quantize_act_s8d.h"
#include "native/kernels/router/choose_experts.h"
#include "native/runtime/arena.h"
#include "native/runtime/model.h"

namespace awqe {

// An expert that rows of the block go to: which of the chosen rows are its own.
struct Visit {
    uint32_t expert;
    uint32_t begin;
    uint32_t end;
};

// What one member of the team knows of the one row of a block: c choices.
struct OwnRoute {
    Choice* choices;
    Visit* visits;
    uint32_t* row;  // zeros: there is one
    float* weight;
    float* shared_weight;  // one number
};

// For up to `rows` rows (m), each with c choices, and `threads` threads. Chosen rows lie in the
// order of their experts, those of one expert in the block's order. Without experts no arrays.
struct ExpertActivations {
    ExpertActivations(const Model& model, size_t rows, unsigned threads, Arena& arena);
    OwnRoute own_route(size_t thread) const;

    float* logits = nullptr;         // [experts + 1]: of one row; the last is the shared expert's
    float* own_logits = nullptr;     // [threads, experts + 1]: of the row that a thread is at
    float* scratch = nullptr;        // [threads, experts]
    Choice* choices = nullptr;       // [m, c]
    float* shared_weight = nullptr;  // [m]
    Visit* visits = nullptr;         // [experts]: of the block
    uint32_t* visit_count = nullptr;
    uint32_t* next_row = nullptr;      // [experts]: while rows are sorted
    uint32_t* chosen_row = nullptr;    // [m * c]: which row of the block
    float* chosen_weight = nullptr;    // [m * c]
    QuantizedRows chosen_input = {};   // [m * c, hidden]
    float* gate = nullptr;             // [m * c, expert_size]: then what the second matrix reads
    float* up = nullptr;               // [m * c, expert_size]
    QuantizedRows activated = {};      // [m * c, expert_size]
    QuantizedRows own_activated = {};  // [threads * c, expert_size]: of one row, for each thread
    float* shared_gate = nullptr;      // [m, shared_expert_size]
    float* shared_up = nullptr;        // [m, shared_expert_size]
    float* mixed = nullptr;            // [m, hidden]: the weighted sum

  private:
    size_t own_stride_ = 0;  // of the arrays of own_route(): threads share no cache line
    Choice* own_choices_ = nullptr;
    Visit* own_visits_ = nullptr;
    uint32_t* own_row_ = nullptr;
    float* own_weight_ = nullptr;
    float* own_shared_weight_ = nullptr;
};

}  // namespace awqe
