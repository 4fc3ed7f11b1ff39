// Sizes of launches, each beside its kernel's name; see launches.h.
#include "native/cuda/launches.h"

#include <algorithm>

namespace awqe::cuda {
namespace {

using awqe_cuda::kUnitChunks;
using awqe_cuda::WalkPlan;

constexpr unsigned kGemmThreads = 512;
constexpr size_t kWalkWarps = 14;  // of kernels/walk.cuh
constexpr size_t kWalkDepth = 4;

// Threads for a norm of `width` numbers: four numbers each, as many as pay.
unsigned norm_threads(size_t width, unsigned most) {
    return std::clamp(static_cast<unsigned>((width + 127) / 128 * 32), 64u, most);
}

size_t gemm_shared(int bits, int group_size) {
    const size_t parts = kChunk / static_cast<size_t>(group_size);
    const size_t codes = kChunk * 4 * static_cast<size_t>(bits) / 8;
    const size_t stage =
        32 * codes + 128 * kChunk + parts * 128 * 8 + 32 * parts * 4 * 2 + 32 * parts * 4;
    return 3 * stage;
}

// The same on warpgroups.
size_t warpgroup_shared(int bits, int group_size) {
    const size_t parts = kChunk / static_cast<size_t>(group_size);
    const size_t low = bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : static_cast<size_t>(bits);
    const size_t high = kChunk * 4 * (static_cast<size_t>(bits) - low) / 8;
    const size_t block = kChunk * 4 * low / 8 + high + (bits == 8 ? 16 : high % 128 == 64 ? 0 : 64);
    const size_t stage = 128 * kChunk + 32 * block + parts * (128 * 8 + 32 * 4 * 3);
    return awqe_cuda::kGroupStages * round_up(stage, 1024) + 1024;
}

// Warps that share a block of rows: enough to have all of a row's units on their way. Eight only
// where four would leave too few CTAs to fill a large GPU.
unsigned warps_per_block(const Matrix& w, size_t blocks) {
    const unsigned units = divided(static_cast<size_t>(w.columns), kUnitInputs);
    unsigned share = 1;
    while (share < units && share < 8) share *= 2;
    return share == 8 && blocks / 2 >= 512 ? 4 : share;
}

// float2 of shared memory per block of rows: kernels/gemv.cuh.
int terms_stride(const Matrix& w) {
    const int unit_groups = kUnitInputs / static_cast<size_t>(w.group_size);
    return std::min((w.groups + unit_groups - 1) / unit_groups * unit_groups, 512) * 4 + 4;
}

// How kernels/walk.cuh multiplies matrices of w's width; no batch where its terms do not fit.
WalkPlan walk_plan(const Matrix& w, int epilogue, bool normed, size_t blocks,
                   const DeviceFacts& facts) {
    const size_t units = divided(static_cast<size_t>(w.columns), kUnitInputs);
    const size_t parts = kChunk / static_cast<size_t>(w.group_size);
    const size_t groups = units * kUnitChunks * parts;
    const size_t row = normed ? round_up(static_cast<size_t>(w.columns), 16) * sizeof(float) : 0;
    const size_t stride = groups * 4 + 4;
    const size_t unit_bytes = 512 * static_cast<size_t>(w.bits) + 96 * parts;
    WalkPlan plan = {};
    if (units > kWalkWarps || w.bits == 8) return plan;
    const size_t step = kWalkWarps / units;  // blocks side by side
    const size_t warps = step * units;
    const size_t together = epilogue == awqe_cuda::kWalkGate ? 2 : 1;
    const size_t own =
        together * divided(blocks / together, static_cast<size_t>(facts.multiprocessors));
    const size_t depth = std::min<size_t>(kWalkDepth, divided(own, step));
    // Two kernels on a multiprocessor at once, if that can be had.
    const size_t all = static_cast<size_t>(facts.shared_bytes) - 4096;
    for (const size_t most : {all / 2, all}) {
        for (size_t batch = 8; batch >= 2 && plan.batch == 0; batch /= 2) {
            const size_t side_at = units * kUnitInputs;
            const size_t norm_at = side_at + round_up(groups * 8, 128);
            const size_t terms_at = norm_at + round_up(row, 128);
            const size_t ring_at = terms_at + round_up(std::max(2 * batch * stride * 8, row), 128);
            const size_t bytes = ring_at + warps * depth * unit_bytes;
            if (bytes > most) continue;
            plan.epilogue = epilogue;
            plan.batch = static_cast<int>(batch);
            plan.terms_stride = static_cast<int>(stride);
            plan.side_at = static_cast<int>(side_at);
            plan.norm_at = static_cast<int>(norm_at);
            plan.terms_at = static_cast<int>(terms_at);
            plan.ring_at = static_cast<int>(ring_at);
            plan.depth = static_cast<int>(depth);
            plan.threads = static_cast<int>((warps + 1) * 32);
            plan.bytes = static_cast<int>(bytes);
        }
    }
    return plan;
}

}  // namespace

// Six steps of 8 bits in groups of 32 are more than a multiprocessor has.
bool has_warpgroups(const DeviceFacts& facts, uint32_t bits, uint32_t group_size) {
    return facts.capability == 90 && (bits != 8 || group_size != 32);
}

Activations activations(signed char* codes, int2* side, size_t k, int group_size) {
    Activations x = {};
    x.codes = codes;
    x.side = side;
    x.k = static_cast<int>(k);
    x.code_stride = static_cast<int>(round_up(k, kUnitInputs));
    x.group_stride = x.code_stride / group_size;
    x.group_size = group_size;
    return x;
}

size_t parts_of(const Products& products, size_t each) {
    size_t parts = 0;
    for (int i = 0; i < products.count; ++i) {
        parts += divided(static_cast<size_t>(products.matrix[i].rows), each);
    }
    return parts;
}

Function Kernels::operator()(const std::string& name) {
    Function& function = known[name];
    if (function == nullptr) {
        // 4 KB stay for what kernels declare themselves.
        const size_t most = static_cast<size_t>(device.facts().shared_bytes) - 4096;
        function = device.kernel(name.c_str(), most);
    }
    return function;
}

Function Kernels::operator()(const char* operation, const Matrix& w, const char* suffix) {
    return (*this)(std::string(operation) + "_u" + std::to_string(w.bits) + "_g" +
                   std::to_string(w.group_size) + suffix);
}

void Launches::quantize(const float* x, const NormWeights& norm, const Activations& out,
                        size_t m) const {
    const unsigned rows = static_cast<unsigned>(m);
    if (norm.weight == nullptr) {
        launch_(kernels_(m == 1 ? "quantize_one" : "quantize_many"),
                {divided(static_cast<size_t>(out.group_stride), 8), rows}, kThreads, 0, x, out);
        return;
    }
    const size_t width = static_cast<size_t>(out.k);
    const std::string kernel = std::string(norm.layer ? "layer_" : "") + "norm_";
    launch_(kernels_(kernel + (m == 1 ? "one" : "many")), {rows},
            norm_threads(width, m == 1 ? 1024 : 512), round_up(width, 16) * sizeof(float), x, norm,
            out);
}

void Launches::norm(float* stream, const float* branch, const NormWeights& norm, size_t m,
                    size_t width, int how) const {
    launch_(kernels_(norm.layer ? "layer_norm_floats" : "norm_floats"), {static_cast<unsigned>(m)},
            norm_threads(width, 512), round_up(width, 16) * sizeof(float), stream, branch, norm,
            static_cast<int>(width), how);
}

void Launches::activate(const float* x, const float* factor, size_t factor_stride, int activation,
                        const Activations& out, size_t m) const {
    launch_(kernels_(m == 1 ? "activate_one" : "activate_many"),
            {divided(static_cast<size_t>(out.group_stride), 8), static_cast<unsigned>(m)}, kThreads,
            0, x, factor, static_cast<int>(factor_stride), activation, out);
}

bool Launches::walks(const Matrix& w) const {
    return device_.facts().capability == 90 && w.columns % 4 == 0 &&
           walk_plan(w, awqe_cuda::kWalkStore, true, size_t{1} << 24, device_.facts()).batch != 0;
}

void Launches::walk(int epilogue, const Products& products, const RowInput& in) const {
    const Matrix& w = products.matrix[0];
    const size_t blocks = parts_of(products, kBlockRows);
    const WalkPlan plan =
        walk_plan(w, epilogue, in.kind == awqe_cuda::kNormed, blocks, device_.facts());
    const size_t items = epilogue == awqe_cuda::kWalkGate ? blocks / 2 : blocks;
    const size_t grid = std::min(items, static_cast<size_t>(device_.facts().multiprocessors));
    launch_(kernels_("walk", w), {static_cast<unsigned>(grid)}, static_cast<unsigned>(plan.threads),
            static_cast<size_t>(plan.bytes), products, in, plan);
}

void Launches::gemv(const char* epilogue, const Products& products, const Activations& x) const {
    const Matrix& w = products.matrix[0];
    const size_t blocks = parts_of(products, kBlockRows);
    const bool gates = std::string(epilogue) == "_gate";
    const int stride = terms_stride(w);
    const unsigned share = std::min(warps_per_block(w, blocks), gates ? 4u : 8u);
    launch_(kernels_("gemv", w, epilogue), {divided(blocks, 8 / share)}, kThreads,
            8 / share * static_cast<size_t>(stride) * 8, products, x, static_cast<int>(share),
            stride);
}

void Launches::rows(const Products& products, const Activations& x, size_t m, bool add) const {
    launch_(kernels_("rows", products.matrix[0]), {static_cast<unsigned>(parts_of(products, 16))},
            kThreads, 0, products, x, static_cast<int>(m), static_cast<int>(add));
}

void Launches::gemm(const Matrix& w, float* out, const Activations& x, size_t m, bool add) const {
    launch_(kernels_("gemm", w), {divided(static_cast<size_t>(w.rows), 128), divided(m, 128)},
            kGemmThreads, gemm_shared(w.bits, w.group_size), w, out, x, static_cast<int>(m),
            static_cast<int>(add));
}

bool Launches::has_warpgroups(const Matrix& w) const {
    return cuda::has_warpgroups(device_.facts(), static_cast<uint32_t>(w.bits),
                                static_cast<uint32_t>(w.group_size));
}

void Launches::gemm_warpgroup(const Products& products, const Activations& x, size_t m,
                              bool add) const {
    const Matrix& w = products.matrix[0];
    launch_(kernels_("gemm_warpgroup", w),
            {static_cast<unsigned>(parts_of(products, 128)), divided(m, 128)}, kThreads,
            warpgroup_shared(w.bits, w.group_size), products, x, static_cast<int>(m),
            static_cast<int>(add));
}

CacheShape cache_shape(size_t kv_heads, size_t head_size, size_t layers, bool int8) {
    CacheShape shape = {};
    shape.int8 = int8;
    const size_t positions = kv_heads * kAttentionChunk;
    const size_t numbers = round_up(positions * head_size * (int8 ? 1 : 2), 256);
    const size_t scales = int8 ? round_up(positions * sizeof(float), 256) : 0;
    shape.values_offset = static_cast<long long>(numbers);
    shape.key_scales_offset = static_cast<long long>(2 * numbers);
    shape.value_scales_offset = static_cast<long long>(2 * numbers + scales);
    shape.layer_bytes = static_cast<long long>(2 * (numbers + scales));
    shape.chunk_bytes = shape.layer_bytes * static_cast<long long>(layers);
    return shape;
}

size_t chunk_shared(size_t head_size, size_t n) {
    const size_t d16 = round_up(head_size, 16);
    return (n * d16 + n * kAttentionChunk + 2 * kAttentionChunk + 3 * d16) * 4 +
           kAttentionChunk * (d16 + 8 + head_size) * 2;
}

size_t prompt_shared(size_t head_size, size_t outputs) {
    const size_t d16 = round_up(head_size, 16);
    return (2 * d16 * 68 + 64 * 68) * 4 + 64 * outputs * 2;
}

// Two chunks' keys and values.
size_t tensor_shared(size_t outputs) { return 4 * kAttentionChunk * outputs * 2; }

}  // namespace awqe::cuda
