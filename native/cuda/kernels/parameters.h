// What the host hands to the kernels, as both sides see it: plain structures of device addresses
// and sizes. Owns the shapes and the order of bytes of every array on the device. NVRTC knows no C
// headers, so nothing is included here.
#pragma once

namespace awqe_cuda {

// A packed matrix (native/format/layouts.h) whose blocks lie on the device as they lie in the file.
struct Matrix {
    const unsigned char* blocks;  // [ceil(rows / 4)] blocks of block_bytes
    const float* bias;            // [rows], or NULL
    int rows;                     // n: outputs
    int columns;                  // k: inputs
    int bits;                     // 2, 3, 4, 5, 6 or 8
    int group_size;               // 32, 64 or 128
    int groups;
    int padded_columns;  // a multiple of 32 (4 and 8 bits) or 64 (the others)
    int zero_points_offset;
    int codes_offset;
    int high_plane_offset;
    int block_bytes;
};

// Bits of a code in the first plane; the rest lies in a second one.
template <int kBits>
constexpr int kLowBits = kBits == 3                 ? 2
                         : kBits == 5 || kBits == 6 ? 4
                                                    : kBits;

constexpr int kBlockRows = 4;
// Inputs that one lane of a matrix-vector product multiplies at a time, and the unit of padding of
// quantised rows: the largest group.
constexpr int kChunk = 128;
// Chunks of a warp: 8 chunks x 4 rows = 32 lanes.
constexpr int kUnitChunks = 8;

// Rows of quantised inputs (native/ARITHMETIC.md, section 3).
// One row: codes as [unit][16-byte piece 0 ... 7][chunk of the unit][16], so that eight lanes which
// read the same piece of eight chunks read 128 bytes in a row. Several rows: [m, code_stride].
struct Activations {
    signed char* codes;
    int2* side;        // [m, group_stride]: the scale's bits, the sum of the group's codes
    int code_stride;   // k rounded up to a unit
    int group_stride;  // groups of code_stride inputs
    int group_size;
    int k;
};

// A row of a step: one token of one sequence.
struct Row {
    unsigned token;
    int position;
    unsigned char* cache;  // of its sequence; layers lie layer_bytes apart
    int turns[3];          // by what angles turn, where a position has three numbers
    float* kept;  // [2, vocabulary] of its sequence, where the row's logits stay, in the second
                  // half where its position is odd; or NULL
};

// A sequence's cache is a row of chunks of 64 positions, each with all layers: where a position
// lies does not depend on how many there are, so sequences of unlike length go through one pass. Of
// one layer in a chunk: keys [kv_heads, 64, head_size], values likewise, and for int8 the scales of
// keys and of values [kv_heads, 64].
struct CacheShape {
    long long chunk_bytes;
    long long layer_bytes;          // of one layer in a chunk
    long long values_offset;        // from the layer's beginning in a chunk
    long long key_scales_offset;    // int8 only
    long long value_scales_offset;  // int8 only
    int int8;
};

// A norm over the numbers of a row or a head.
struct NormWeights {
    const float* weight;  // or NULL: there is none
    const float* bias;    // or NULL
    float epsilon;
    int layer;  // a layer norm; otherwise an RMS norm
};

struct Heads {
    int heads;
    int kv_heads;
    int head_size;
    int window;  // 0: a token sees every earlier one
    NormWeights query_norm;
    NormWeights key_norm;
    int norm_stride;      // weights from one head's norm to the next's: 0 or head_size
    float limit;          // of queries, keys and values; 0: none
    float score_cap;      // 0: none
    const float* slopes;  // [heads]: how scores fall with the distance; or NULL
    int angle_stride;     // angles of a row, of all rotary tables; 0: nothing is turned
};

// Keys and values [rows, kv_heads, head_size] as the products gave them, and the angles of the
// layer's table, rows angle_stride apart.
struct FreshRows {
    const float* key;  // or NULL: keys and values are in the cache, queries are turned
    const float* value;
    const float* cosines;
    const float* sines;
};

constexpr int kGroupStages = 6;  // steps that gemm_warpgroup.cuh has on their way or at work

constexpr int kAttentionChunk = 64;  // positions; native/ARITHMETIC.md, section 7

// What one chunk of positions says about one query: [rows, heads, chunks] of these.
struct Partials {
    float* largest;  // [rows, heads, chunks]
    float* weight;   // [rows, heads, chunks]
    float* values;   // [rows, heads, chunks, head_size]
    int chunks;      // that there is room for
};

// Of logits: runtime/backend.h's.
struct Likeliest {
    unsigned token;
    unsigned not_finite;
};
constexpr unsigned kNoToken = 0xffffffff;

constexpr int kLikeliestNumbers = 2048;  // logits of a CTA of likeliest.cuh

// The largest of some logits that are finite, its token, and the first one that is not.
struct LogitPart {
    float logit;
    unsigned token;
    unsigned not_finite;
};

// runtime's Activation, in its order.
constexpr int kSilu = 0;
constexpr int kGelu = 1;
constexpr int kGeluTanh = 2;
constexpr int kRelu = 3;

// Up to three matrices with one input, their blocks of rows one after the other.
struct Products {
    Matrix matrix[3];
    float* out[3];  // [m, rows of the matrix]
    int count;
    int activation;  // of matrix 0, where matrix 1 is multiplied with it
};

// The row that walk.cuh multiplies, and what it is before: quantised in units, floats [k] that
// are quantised as they are, or floats [k] whose norm is.
constexpr int kQuantised = 0;
constexpr int kFloats = 1;
constexpr int kNormed = 2;
struct RowInput {
    int kind;
    const float* x;     // of kFloats and kNormed
    NormWeights norm;   // of kNormed
    Activations codes;  // of kQuantised; otherwise its sizes alone
};

// What walk.cuh does with a product: out[n] = y; out[n] += y; out[n] = act(gate's y) * up's y.
constexpr int kWalkStore = 0;
constexpr int kWalkAdd = 1;
constexpr int kWalkGate = 2;

// How walk.cuh works and what lies where in shared memory, in bytes from its beginning: the codes
// of the row, in units, then these.
struct WalkPlan {
    int epilogue;
    int batch;         // blocks of rows whose terms are added side by side: 2, 4 or 8
    int terms_stride;  // float2 from one block's terms to the next's
    int side_at;       // int2 [groups, rounded up to units]
    int norm_at;       // float [k], of a row that is normed: what it is multiplied with
    int terms_at;      // float2 [2, batch, terms_stride]; before, the row that is normed
    int ring_at;       // units that are on their way, of each warp `depth`
    int depth;
    int threads;
    int bytes;
};

}  // namespace awqe_cuda
