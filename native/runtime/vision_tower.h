// A vision tower over the rows of one picture, on CPUs: patches, then layers that differ from a
// decoder's in that every row sees all rows; and what stands between tower and decoder
// (vision_connector.cpp). Owns the order of the operations and the arrays between them.
//
// The stream and the keys and values of a layer are kept for all rows; everything else is computed
// in strips of rows, so that a wide feed-forward takes little memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/kernels/kernel_table.h"
#include "native/runtime/arena.h"
#include "native/runtime/products.h"
#include "native/runtime/vision_weights.h"

namespace awqe {

// A picture in patches.
struct VisionShape {
    size_t height;
    size_t width;
    size_t line;  // pixels of a row of it: those that no patch has too

    size_t patches() const { return height * width; }
};

// The arrays of one picture at a time.
struct VisionActivations {
    VisionActivations(const VisionModel& w, const VisionShape& shape, unsigned threads,
                      Arena& arena);

    // Long enough to use each weight that was unpacked many times.
    static constexpr size_t kStripRows = 64;
    // Queries of a head that one thread takes at a time: they share every load of a key or a value.
    static constexpr size_t kQueries = 16;

    float* residual;   // [rows, hidden], a resampler's rows behind the tower's
    uint16_t* keys;    // half [heads, rows, head_size]
    uint16_t* values;  // half [heads, rows, head_size]

    // Of towers that turn: float [rows, head_size / 2] each.
    float* cosines;
    float* sines;
    // With windows the rows of one follow each other: which patch each row is and which row each
    // patch, and where the window of each begins and ends. uint32 [rows] each.
    uint32_t* patch_of_row;
    uint32_t* row_of_patch;
    uint32_t* window_begin;
    uint32_t* window_end;

    // Of a strip (m):
    float* query;     // [m, heads * head_size]; and its keys, until they are stored
    float* attended;  // [m, heads * head_size]; and its values, until they are stored
    float* wide;      // [m, feed_forward or connector_size]
    float* gate;      // [m, feed_forward], where there is one
    float* branch;    // [m, hidden]: what is about to be added to the stream

    float* row;  // [threads, row_stride]: one row on its way into a matrix
    size_t row_stride;
    float* head_rows;  // [threads, 2, kQueries, head_size]: queries of one head, and what they see
    QuantizedRows block_input;  // m rows of the widest input
    QuantizedRows own_input;    // the same for one row, one per thread
};

// What all steps of a picture have in common. m: rows of the strip, which begins at row `first`.
struct VisionStep : Working {
    VisionStep(const VisionModel& model, const VisionShape& of_picture,
               const VisionActivations& activations, const KernelTable& table, Team& members)
        : Working{table, members, activations.block_input, activations.own_input, 0},
          w(model),
          a(model.architecture),
          shape(of_picture),
          at(activations) {}

    const VisionModel& w;
    const VisionArchitecture& a;
    const VisionShape& shape;
    const VisionActivations& at;
    size_t first = 0;

    size_t rows() const { return shape.patches() + (a.class_token ? 1 : 0); }
    size_t tokens() const { return token_lines() * token_columns(); }
    size_t token_lines() const { return a.pooled(static_cast<uint32_t>(shape.height)); }
    size_t token_columns() const { return a.pooled(static_cast<uint32_t>(shape.width)); }
    // The row of a patch, and the other way.
    size_t row_of(size_t patch) const {
        if (a.window != 0) return at.row_of_patch[patch];
        return patch + (a.class_token ? 1 : 0);
    }
    size_t patch_of(size_t row) const {
        return a.window != 0 ? at.patch_of_row[row] : row - (a.class_token ? 1 : 0);
    }

    float* residual(size_t t) const { return at.residual + (first + t) * a.hidden_size; }
    float* own_row() const { return at.row + team.index() * at.row_stride; }

    // Calls body() for every strip of the rows [0, count).
    template <class Body>
    void for_strips(size_t count, const Body& body) {
        constexpr size_t kRows = VisionActivations::kStripRows;
        for (first = 0; first < count; first += kRows) {
            m = count - first < kRows ? count - first : kRows;
            body();
        }
    }
};

// Every member of the team runs these, in this order.
//
// The stream begins as the picture's patches. pixels: [height, width, 3], red first.
void enter_tower(VisionStep& step, const uint8_t* pixels);
void tower_layer(VisionStep& step, size_t number);
// What tap `number` makes of the stream behind its layer.
void leave_by_tap(VisionStep& step, size_t number, float* embeddings);
// embeddings: float [tokens, embedding_size]
void leave_tower(VisionStep& step, float* embeddings);

// In the place of leave_tower() where a decoder looks at pictures (vision_resampler.cpp); the first
// two where there is a resampler.
void enter_resampler(VisionStep& step);
void resampler_layer(VisionStep& step, size_t number);
void leave_for_blocks(VisionStep& step, float* embeddings);

// ---- what both files use ------------------------------------------------------------------------

// y = act(W x[t] + bias), times factor where there is one: float [m, n]
void activate_product(const VisionStep& step, const Linear& linear, Activation activation,
                      const QuantizedRows& x, const float* factor, float* y);
// The strip's stream takes up W x + bias: whoever computes a row of the matrix also adds it.
void add_to_stream(const VisionStep& step, const Linear& linear, const QuantizedRows& x);
// The norm of every row of the stream, in its place.
void normalise_stream(VisionStep& step, const Norm& norm);

}  // namespace awqe
