// A small decoder with random weights that computes something: two layers with biases, query and
// key norms and a sliding window, matrices of every bit width, rows and columns that end inside a
// block and inside a group. The base of damaged files.
#pragma once

#include <cstring>
#include <string>

#include "native/format/layouts.h"
#include "tests/native/support/model_bytes.h"
#include "tests/native/support/random.h"

namespace awqe::test {

// Rows of a matrix begin behind the header that describes it (FORMAT.md, section 2).
constexpr size_t kMatrixHeaderBytes = 64;

// A matrix of `file` with random codes, zero-points and scales.
inline void set_random_matrix(FileSpec& file, const std::string& name, uint64_t rows,
                              uint64_t columns, uint32_t bits, Random& random) {
    file.set_matrix(name, rows, columns, bits);
    Bytes& data = file.tensor(name).data;
    const PackedMatrix w = packed_matrix_layout(rows, columns, bits, 32);
    for (uint64_t block = 0; block < (rows + 3) / 4; ++block) {
        uint8_t* const begin = data.data() + kMatrixHeaderBytes + block * w.block_bytes;
        for (uint64_t i = 0; i < w.groups * 4; ++i) {
            // Halves of 2^-6 to 2^-4 over the codes' range: outputs of ordinary size.
            const auto scale =
                static_cast<uint16_t>((bits == 8 ? 0x1000 : 0x2400) + random.integer(0, 0x7ff));
            std::memcpy(begin + 2 * i, &scale, sizeof(scale));
            begin[w.zero_points_offset + i] =
                static_cast<uint8_t>(1 << (bits - 1));  // codes lie around it
        }
        for (uint64_t i = w.codes_offset; i < w.block_bytes; ++i) {
            begin[i] = static_cast<uint8_t>(random.bits());
        }
    }
}

inline FileSpec random_model() {
    constexpr uint32_t kHidden = 36, kHeads = 2, kHeadSize = 6, kWidth = 20, kVocabulary = 9;
    Random random(1);
    FileSpec file = small_model();
    file.tensors.clear();
    const std::string decoder = "awq_edge.decoder.";
    file.set_u32(decoder + "layers", 2);
    file.set_u32(decoder + "hidden_size", kHidden);
    file.set_u32(decoder + "vocabulary_size", kVocabulary);
    file.set_u32(decoder + "heads", kHeads);
    file.set_u32(decoder + "head_size", kHeadSize);
    file.set_u32(decoder + "feed_forward_size", kWidth);
    file.set(decoder + "qk_norm", kBoolean, {1});
    file.set(decoder + "tied_head", kBoolean, {0});
    file.set(decoder + "sliding_windows", kList, u32_array({3, 0}));
    const auto vector = [&](const std::string& name, size_t size, float middle) {
        std::vector<float> values(size);
        for (float& v : values) v = middle + random.real(0.25f);
        file.set_floats(name, values);
    };
    const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns,
                            uint32_t bits) {
        set_random_matrix(file, name, rows, columns, bits, random);
    };
    matrix("token_embd.weight", kVocabulary, kHidden, 8);
    matrix("output.weight", kVocabulary, kHidden, 8);
    vector("output_norm.weight", kHidden, 1.0f);
    file.set_floats("rope.inverse_frequencies", {1.0f, 0.1f, 0.01f});
    const uint32_t bits[2][7] = {{4, 3, 2, 8, 4, 3, 2}, {3, 4, 8, 2, 2, 4, 3}};
    for (int layer = 0; layer < 2; ++layer) {
        const std::string name = "blk." + std::to_string(layer) + ".";
        const uint32_t* const b = bits[layer];
        vector(name + "attn_norm.weight", kHidden, 1.0f);
        matrix(name + "attn_q.weight", kHeads * kHeadSize, kHidden, b[0]);
        matrix(name + "attn_k.weight", kHeadSize, kHidden, b[1]);
        matrix(name + "attn_v.weight", kHeadSize, kHidden, b[2]);
        vector(name + "attn_k.bias", kHeadSize, 0.0f);
        vector(name + "attn_q_norm.weight", kHeadSize, 1.0f);
        vector(name + "attn_k_norm.weight", kHeadSize, 1.0f);
        matrix(name + "attn_output.weight", kHidden, kHeads * kHeadSize, b[3]);
        vector(name + "ffn_norm.weight", kHidden, 1.0f);
        matrix(name + "ffn_gate.weight", kWidth, kHidden, b[4]);
        matrix(name + "ffn_up.weight", kWidth, kHidden, b[5]);
        matrix(name + "ffn_down.weight", kHidden, kWidth, b[6]);
        vector(name + "ffn_down.bias", kHidden, 0.0f);
    }
    return file;
}

}  // namespace awqe::test
