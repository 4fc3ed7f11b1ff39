// Every kernel under the name by which the host finds it, compiled into one module per GPU. Names:
// <op>_u<bits>_g<group size>_<epilogue>. __launch_bounds__ says how many threads there are and how
// many CTAs shall fit on a multiprocessor; README.md has the reasons.
#include "attention_prompt.cuh"
#include "attention_tensor.cuh"
#include "experts.cuh"
#include "gemm_warpgroup.cuh"
#include "gemv.cuh"
#include "likeliest.cuh"
#include "prepare.cuh"
#include "read_memory.cuh"
#include "rows.cuh"
#include "walk.cuh"

using namespace awqe_cuda;

#define KERNEL extern "C" __global__ void

KERNEL embed(const Row* rows, Matrix table, const float* inverse_frequencies, int angles,
             const unsigned char* axes, int half, float* residual, float* cosines, float* sines) {
    embed_row(rows, table, inverse_frequencies, angles, axes, half, residual, cosines, sines);
}
KERNEL add_positions(const Row* rows, const float* positions, int width, float* residual) {
    add_position(rows, positions, width, residual);
}

KERNEL norm_one(const float* x, NormWeights norm, Activations out) {
    norm_rows<true, false>(x, norm, out);
}
KERNEL norm_many(const float* x, NormWeights norm, Activations out) {
    norm_rows<false, false>(x, norm, out);
}
KERNEL layer_norm_one(const float* x, NormWeights norm, Activations out) {
    norm_rows<true, true>(x, norm, out);
}
KERNEL layer_norm_many(const float* x, NormWeights norm, Activations out) {
    norm_rows<false, true>(x, norm, out);
}
KERNEL norm_floats(float* stream, const float* branch, NormWeights norm, int k, int how) {
    norm_stream<false>(stream, branch, norm, k, how);
}
KERNEL layer_norm_floats(float* stream, const float* branch, NormWeights norm, int k, int how) {
    norm_stream<true>(stream, branch, norm, k, how);
}
KERNEL quantize_one(const float* x, Activations out) { quantize_rows<true>(x, out); }
KERNEL quantize_many(const float* x, Activations out) { quantize_rows<false>(x, out); }
KERNEL activate_one(const float* x, const float* factor, int factor_stride, int activation,
                    Activations out) {
    activate_rows<true>(x, factor, factor_stride, activation, out);
}
KERNEL activate_many(const float* x, const float* factor, int factor_stride, int activation,
                     Activations out) {
    activate_rows<false>(x, factor, factor_stride, activation, out);
}
KERNEL __launch_bounds__(kRouterWarps * 32)
    route(const float* x, const float* router, const float* shared_router, int k, int experts,
          float* logits) {
    route_row(x, router, shared_router, k, experts, logits);
}
KERNEL add_weighted(const float* part, const unsigned* rows, const float* weights, int k,
                    float* mixed) {
    add_weighted_row(part, rows, weights, k, mixed);
}
KERNEL add(float* stream, const float* branch, int count) { add_floats(stream, branch, count); }
KERNEL cap(float* x, int count, float limit) { cap_floats(x, count, limit); }
KERNEL __launch_bounds__(kLikeliestThreads)
    likeliest(const float* logits, int vocabulary, const Row* rows, const unsigned* wanted,
              LogitPart* parts, unsigned* arrivals, Likeliest* out, int out_stride, Row* next) {
    find_likeliest(logits, vocabulary, rows, wanted, parts, arrivals, out, out_stride, next);
}
KERNEL read_memory(const unsigned char* pieces, long long count, unsigned* sum) {
    read_pieces(pieces, count, sum);
}
KERNEL gather(const float* from, const unsigned* rows, int width, float* to) {
    gather_row(from, rows, width, to);
}

KERNEL __launch_bounds__(kPrepareWarps * 32)
    prepare(const Row* rows, Heads a, float* query, const float* key, const float* value,
            const float* cosines, const float* sines, CacheShape cache, int layer) {
    prepare_heads(rows, a, query, key, value, cosines, sines, cache, layer);
}

#define ATTENTION(rows_word, units, cache_word, int8, head_word, head, changed)                    \
    KERNEL __launch_bounds__(kAttentionThreads, (head) != 0 ? 4 : 2)                               \
        attention_##rows_word##_##cache_word##_##head_word(                                        \
            const Row* rows, Heads a, const float* query, CacheShape cache, int layer,             \
            Partials partials, unsigned* arrivals, Activations out, int n, FreshRows fresh) {      \
        attend_chunks<units, head, int8, changed>(rows, a, query, cache, layer, partials,          \
                                                  arrivals, out, n, fresh);                        \
    }
#define ATTENTION_OF(rows_word, units)                          \
    ATTENTION(rows_word, units, f16, false, d64, 64, false)     \
    ATTENTION(rows_word, units, f16, false, d128, 128, false)   \
    ATTENTION(rows_word, units, f16, false, any, 0, false)      \
    ATTENTION(rows_word, units, s8, true, any, 0, false)        \
    ATTENTION(rows_word, units, f16, false, any_changed, 0, true) \
    ATTENTION(rows_word, units, s8, true, any_changed, 0, true)
ATTENTION_OF(one, true)
ATTENTION_OF(many, false)

KERNEL __launch_bounds__(kChunk)
    attention_merge_one(const Row* rows, Heads a, Partials partials, Activations out) {
    merge_rows<true>(rows, a, partials, out);
}
KERNEL __launch_bounds__(kChunk)
    attention_merge_many(const Row* rows, Heads a, Partials partials, Activations out) {
    merge_rows<false>(rows, a, partials, out);
}
KERNEL __launch_bounds__(kChunk)
    attention_merge_floats(const Row* rows, Heads a, Partials partials, float* out, int width) {
    const float value = merged_value(rows, a, partials, width);
    const int i = blockIdx.x * kChunk + threadIdx.x;
    if (i < width) out[(long long)blockIdx.y * width + i] = value;
}

#define ATTENTION_PROMPT(dims, word, changed)                                                \
    KERNEL __launch_bounds__(kPromptThreads, 2)                                              \
        attention_prompt_d##dims##word(const Row* rows, int m, Heads a, const float* query,  \
                                       CacheShape cache, int layer, float* out) {            \
        attend_prompt<(dims) / 16, changed>(rows, m, a, query, cache, layer, out);           \
    }
ATTENTION_PROMPT(64, , false)
ATTENTION_PROMPT(128, , false)
ATTENTION_PROMPT(64, _changed, true)
ATTENTION_PROMPT(128, _changed, true)

#define ATTENTION_TENSOR(head)                                                                   \
    KERNEL __launch_bounds__(kTensorThreads, kTensorTogether<head>)                              \
        attention_tensor_d##head(const Row* rows, int m, Heads a, const float* query,            \
                                 CacheShape cache, int layer, float* out) {                      \
        attend_on_tensor_cores<head>(rows, m, a, query, cache, layer, out);                      \
    }
ATTENTION_TENSOR(64)
ATTENTION_TENSOR(128)

#define PRODUCTS(bits, group)                                                               \
    KERNEL __launch_bounds__(kGemvWarps * 32)                                               \
        gemv_u##bits##_g##group##_store(Products w, Activations x, int share, int stride) { \
        gemv<bits, 128 / group, Epilogue::kStore>(w, x, share, stride);                     \
    }                                                                                       \
    KERNEL __launch_bounds__(kGemvWarps * 32)                                               \
        gemv_u##bits##_g##group##_add(Products w, Activations x, int share, int stride) {   \
        gemv<bits, 128 / group, Epilogue::kAdd>(w, x, share, stride);                       \
    }                                                                                       \
    KERNEL __launch_bounds__(kGemvWarps * 32)                                               \
        gemv_u##bits##_g##group##_gate(Products w, Activations x, int share, int stride) {  \
        gemv<bits, 128 / group, Epilogue::kGate>(w, x, share, stride);                      \
    }                                                                                       \
    KERNEL __launch_bounds__(kRowsWarps * 32)                                               \
        rows_u##bits##_g##group(Products w, Activations x, int m, int add) {                \
        few_rows<bits, 128 / group>(w, x, m, add != 0);                                     \
    }                                                                                       \
    KERNEL __launch_bounds__(kGemmThreads)                                                  \
        gemm_u##bits##_g##group(Matrix w, float* out, Activations x, int m, int add) {      \
        gemm<bits, 128 / group>(w, out, x, m, add != 0);                                    \
    }

#if defined(AWQE_HAS_WARPGROUPS)
#define GROUP_PRODUCTS(bits, group)                                                              \
    KERNEL __launch_bounds__(kGroupThreads, 1)                                                   \
        gemm_warpgroup_u##bits##_g##group(Products w, Activations x, int m, int add) {           \
        gemm_warpgroup<bits, 128 / group>(w, x, m, add != 0);                                    \
    }
#endif
#if defined(AWQE_KERNELS_BEGIN_EARLY)
#define WALK_PRODUCTS(bits, group)                                            \
    KERNEL __launch_bounds__(kWalkThreads, 2)           \
        walk_u##bits##_g##group(Products w, RowInput in, WalkPlan plan) {     \
        walk<bits, 128 / group>(w, in, plan);                                 \
    }
#endif

// Widths and group sizes, for the products and for lists of them; those of walk.cuh first.
#if defined(AWQE_FEW_PRODUCTS)
#define AWQE_WALKED_PRODUCTS(X) X(4, 128)
#define AWQE_PRODUCTS(X) AWQE_WALKED_PRODUCTS(X) X(8, 128)
#else
#define AWQE_PRODUCTS_OF(X, bits) X(bits, 128) X(bits, 64) X(bits, 32)
#define AWQE_WALKED_PRODUCTS(X)                                                   \
    AWQE_PRODUCTS_OF(X, 2) AWQE_PRODUCTS_OF(X, 3) AWQE_PRODUCTS_OF(X, 4)          \
    AWQE_PRODUCTS_OF(X, 5) AWQE_PRODUCTS_OF(X, 6)
#define AWQE_PRODUCTS(X) AWQE_WALKED_PRODUCTS(X) AWQE_PRODUCTS_OF(X, 8)
#endif
AWQE_PRODUCTS(PRODUCTS)
#if defined(AWQE_HAS_WARPGROUPS)
AWQE_PRODUCTS(GROUP_PRODUCTS)
#endif
#if defined(AWQE_KERNELS_BEGIN_EARLY)
AWQE_WALKED_PRODUCTS(WALK_PRODUCTS)
#endif
