// The forward pass as launches, top to bottom; enqueue() is the summary.
#include "native/cuda/step.h"

#include <algorithm>
#include <string>

#include "native/cuda/step_parts.h"
#include "native/failure/failure.h"

namespace awqe::cuda {
namespace {

using awqe_cuda::FreshRows;
using awqe_cuda::Heads;

static_assert(static_cast<int>(Activation::kSilu) == awqe_cuda::kSilu &&
              static_cast<int>(Activation::kGelu) == awqe_cuda::kGelu &&
              static_cast<int>(Activation::kGeluTanh) == awqe_cuda::kGeluTanh &&
              static_cast<int>(Activation::kRelu) == awqe_cuda::kRelu);

constexpr size_t kMaxPromptHead = 128;  // of kernels/attention_prompt.cuh
// After so many passes that took the likeliest tokens the next one starts without being asked for:
// a text that ends costs one in vain.
constexpr unsigned kFollowed = 2;

bool same(const Row& a, const Row& b) {
    return a.token == b.token && a.position == b.position && a.cache == b.cache &&
           a.kept == b.kept && std::equal(a.turns, a.turns + 3, b.turns);
}

}  // namespace

uint64_t Step::bytes(const Architecture& a, size_t rows, size_t taps) {
    return Arrays(a, rows, taps, 0).bytes;
}

namespace {

// By which of a row's three numbers each angle of a head turns, as runtime/forward.cpp has it.
std::vector<unsigned char> axes_of(const Architecture& a) {
    const std::vector<uint32_t>& sections = a.rope_sections;
    std::vector<unsigned char> axes(a.head_size / 2);
    for (size_t i = 0; i < axes.size(); ++i) {
        if (a.rope_interleaved) {
            const size_t kind = i % 3;
            axes[i] = kind != 0 && i < 3 * size_t{sections[kind]} ? i % 3 : 0;
        } else {
            axes[i] = i < sections[0] ? 0 : i < size_t{sections[0]} + sections[1] ? 1 : 2;
        }
    }
    return axes;
}

}  // namespace

Step::Step(std::shared_ptr<const Device> device, const Architecture& a, const Weights& weights,
           const CacheShape& cache, size_t rows, size_t taps)
    : device_(std::move(device)),
      a_(a),
      weights_(weights),
      cache_(cache),
      taps_(taps),
      kernels_(new Kernels{*device_, {}}) {
    Buffer memory(device_, bytes(a, rows, taps));
    arrays_ = std::make_unique<Arrays>(a, rows, taps, memory.address());
    arrays_->memory = std::move(memory);
    arrays_->staged_rows = PinnedBuffer(device_, rows * sizeof(Row));
    if (goes_on()) {
        arrays_->staged_stream = PinnedBuffer(device_, rows * a.hidden_size * sizeof(float));
    }
    arrays_->staged_wanted = PinnedBuffer(device_, 2 * rows * sizeof(unsigned));
    if (a.experts != 0) {
        const size_t choices = rows * a.experts_per_token;
        arrays_->staged_router_logits =
            PinnedBuffer(device_, rows * (a.experts + 1) * sizeof(float));
        arrays_->staged_choice_rows = PinnedBuffer(device_, choices * sizeof(unsigned));
        arrays_->staged_choice_weights = PinnedBuffer(device_, choices * sizeof(float));
        arrays_->staged_shared_weights = PinnedBuffer(device_, rows * sizeof(float));
    }
    arrays_->staged_logits = PinnedBuffer(device_, kFewRows * a.vocabulary_size * sizeof(float));
    arrays_->staged_likeliest = PinnedBuffer(device_, 2 * rows * sizeof(Likeliest));
    const Driver& d = device_->driver();
    stream_ = open_stream(d);
    for (OwnedEvent& end : ends_) end = open_event(d, false);
    if (arrays_->axes != nullptr) {
        const std::vector<unsigned char> axes = axes_of(a);
        check(d.cuMemcpyHtoDAsync_v2(reinterpret_cast<Address>(arrays_->axes), axes.data(),
                                     axes.size(), stream_.get()),
              "copy the weights");
        check(d.cuStreamSynchronize(stream_.get()), "copy the weights");
    }
    check(d.cuMemsetD8Async(reinterpret_cast<Address>(arrays_->arrivals), 0,
                            rows * a.heads * sizeof(unsigned), stream_.get()),
          "clear its memory");
}

Step::~Step() {
    settle();
    forget_graphs();
}

void Step::settle() noexcept {
    // What went wrong the next call tells: it is told again.
    if (ahead_) device_->driver().cuStreamSynchronize(stream_.get());
    ahead_ = false;
    followed_ = 0;
    foretold_.clear();
}

unsigned Step::chunks_of(const Row& row, uint32_t window) const {
    const unsigned end = static_cast<unsigned>(row.position) + 1;
    const unsigned begin = window == 0 || window > end ? 0 : end - window;
    return divided(end, kAttentionChunk) - begin / kAttentionChunk;
}

unsigned Step::chunks_of(const std::vector<Row>& rows) const {
    unsigned chunks = 1;
    for (const uint32_t window : a_.sliding_windows) {
        for (const Row& row : rows) chunks = std::max(chunks, chunks_of(row, window));
    }
    return chunks;
}

// Rounded up to a power of two or one and a half, so that few graphs serve all positions; kernels
// for chunks that a row does not see end at once, but take a place first.
unsigned Step::recorded_chunks(unsigned chunks) const {
    unsigned rounded = 8;
    while (rounded < chunks) rounded = rounded % 3 == 0 ? rounded / 3 * 4 : rounded / 2 * 3;
    return std::min(rounded, static_cast<unsigned>(arrays_->partials.chunks));
}

// ---- products -----------------------------------------------------------------------------------

// One row times matrices of one width by kernels/walk.cuh.
void Step::walk_row(int epilogue, const Products& products, const Source& x) {
    awqe_cuda::RowInput in = {};
    in.kind = x.x == nullptr             ? awqe_cuda::kQuantised
              : x.norm.weight != nullptr ? awqe_cuda::kNormed
                                         : awqe_cuda::kFloats;
    in.x = x.x;
    in.norm = x.norm;
    in.codes = x.codes;
    launches().walk(epilogue, products, in);
}

// out = W x (+ out where `add`), for matrices with one input; one launch for those of one width.
void Step::multiply(std::vector<std::pair<const Matrix*, float*>> products, const Source& from,
                    size_t m, bool add) {
    const Launches launch = launches();
    const Activations& x = from.codes;
    // A row that any kernel wants quantised is so for all.
    Source row = from;
    if (from.x != nullptr &&
        !std::all_of(products.begin(), products.end(),
                     [&](const auto& product) { return walks(*product.first, m); })) {
        launch.quantize(from.x, from.norm, x, m);
        row.x = nullptr;
    }
    while (!products.empty()) {
        const Matrix& first = *products.front().first;
        if (m > kSlicedRows && !launch.has_warpgroups(first)) {
            launch.gemm(first, products.front().second, x, m, add);
            products.erase(products.begin());
            continue;
        }
        Products together = {};
        for (auto at = products.begin(); at != products.end() && together.count < 3;) {
            if (at->first->bits != first.bits) {
                ++at;
                continue;
            }
            together.matrix[together.count] = *at->first;
            together.out[together.count++] = at->second;
            at = products.erase(at);
        }
        if (m > kSlicedRows) {
            launch.gemm_warpgroup(together, x, m, add);
        } else if (m > 1) {
            for (size_t done = 0; done < m; done += kFewRows) {
                Activations slice = x;
                slice.codes += done * static_cast<size_t>(x.code_stride);
                slice.side += done * static_cast<size_t>(x.group_stride);
                Products outputs = together;
                for (int i = 0; i < outputs.count; ++i)
                    outputs.out[i] += done * static_cast<size_t>(outputs.matrix[i].rows);
                launch.rows(outputs, slice, std::min(kFewRows, m - done), add);
            }
        } else if (walks(together.matrix[0], m)) {
            walk_row(add ? awqe_cuda::kWalkAdd : awqe_cuda::kWalkStore, together, row);
        } else {
            launch.gemv(add ? "_add" : "_store", together, x);
        }
    }
}

// ---- attention ----------------------------------------------------------------------------------

namespace {

Heads heads_of(const Architecture& a, const Weights& weights, size_t layer) {
    const LayerAddresses& w = weights.layers()[layer];
    Heads heads = {};
    heads.heads = static_cast<int>(a.heads);
    heads.kv_heads = static_cast<int>(a.kv_heads);
    heads.head_size = static_cast<int>(a.head_size);
    heads.window = static_cast<int>(a.sliding_windows[layer]);
    if (a.qk_norm == QkNorm::kHead || a.qk_norm == QkNorm::kHeads) {
        heads.query_norm = w.query_norm;
        heads.key_norm = w.key_norm;
        heads.norm_stride = a.qk_norm == QkNorm::kHeads ? heads.head_size : 0;
    }
    heads.limit = a.qkv_clamp;
    heads.score_cap = a.score_cap;
    heads.slopes = weights.alibi_slopes();
    heads.angle_stride = static_cast<int>(a.rope_table_count() * (a.head_size / 2));
    return heads;
}

// Pieces of kernels/attention_tensor.cuh are of eight numbers.
bool fits_tensor_cores(const Architecture& a) { return a.head_size % 8 == 0; }

}  // namespace

// Leaves quantised outputs of attention in the activations. `chunks`: at least as many as any row
// sees.
void Step::attend(size_t m, const std::vector<Run>& runs, int layer, unsigned chunks,
                  const FreshRows& fresh) {
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const Heads heads = heads_of(a_, weights_, static_cast<size_t>(layer));
    const Matrix& output = weights_.layers()[static_cast<size_t>(layer)].attention_output;
    const Activations out = activations(at.codes, at.side, a_.query_size(), output.group_size);
    const unsigned pieces = static_cast<unsigned>(out.code_stride / kChunk);
    const size_t touched = std::min<size_t>(a_.heads, kChunk / a_.head_size + 2);
    const size_t merge_shared = touched * 3 * chunks * sizeof(float);
    const auto prompt = [&](const Run& run) {
        return run.count >= kPromptRows && a_.head_size <= kMaxPromptHead;
    };
    const bool floats = std::any_of(runs.begin(), runs.end(), prompt);
    // Query heads of a key-value head that go together: fewer where the GPU would be half empty,
    // but whole groups. Then the CTA of the last chunk merges, if its factors fit.
    const auto whole = [&](size_t n) {
        return n * a_.head_size % static_cast<size_t>(out.group_size) == 0;
    };
    size_t n = a_.heads / a_.kv_heads;
    const size_t enough = 2 * static_cast<size_t>(device_->facts().multiprocessors);
    while (n % 2 == 0 && (whole(n / 2) || !whole(n)) && a_.heads / n * chunks * m < enough) n /= 2;
    const bool merges = !floats && n <= 64 && whole(n) &&
                        3 * size_t{chunks} <= round_up(a_.head_size, 16) + kAttentionChunk;
    const bool changed = heads.score_cap != 0 || heads.slopes != nullptr;
    const std::string head = cache_.int8           ? "s8_any"
                             : changed             ? "f16_any"
                             : a_.head_size == 64  ? "f16_d64"
                             : a_.head_size == 128 ? "f16_d128"
                                                   : "f16_any";
    const std::string suffix = changed ? "_changed" : "";
    const std::string kernel = (m == 1 ? "attention_one_" : "attention_many_") + head + suffix;
    for (size_t i = 0; i < runs.size();) {
        Run run = runs[i++];
        if (prompt(run)) {
            const bool small = a_.head_size <= 64;
            const size_t at_row = run.first * size_t{a_.query_size()};
            const unsigned tiles = divided(run.count * (a_.heads / a_.kv_heads), 64);
            if (run.on_tensor_cores && fits_tensor_cores(a_)) {
                launch((*kernels_)(small ? "attention_tensor_d64" : "attention_tensor_d128"),
                       {a_.kv_heads, tiles}, 128, tensor_shared(small ? 64 : 128),
                       static_cast<const Row*>(at.rows + run.first), static_cast<int>(run.count),
                       heads, static_cast<const float*>(at.query + at_row), cache_, layer,
                       at.attended + at_row);
                continue;
            }
            launch((*kernels_)((small ? "attention_prompt_d64" : "attention_prompt_d128") + suffix),
                   {tiles, a_.kv_heads}, kThreads, prompt_shared(a_.head_size, small ? 64 : 128),
                   static_cast<const Row*>(at.rows + run.first), static_cast<int>(run.count), heads,
                   static_cast<const float*>(at.query + at_row), cache_, layer,
                   at.attended + at_row);
            continue;
        }
        // Rows are attended by themselves: neighbouring runs go together.
        while (i < runs.size() && !prompt(runs[i])) run.count += runs[i++].count;
        for (size_t done = 0; done < run.count; done += at.partial_rows) {
            const unsigned count =
                static_cast<unsigned>(std::min<size_t>(at.partial_rows, run.count - done));
            const size_t first = run.first + done;
            const size_t at_row = first * a_.query_size();
            const Row* const rows = at.rows + first;
            Activations slice = out;
            slice.codes += first * static_cast<size_t>(out.code_stride);
            slice.side += first * static_cast<size_t>(out.group_stride);
            FreshRows own = fresh;
            if (fresh.key != nullptr) {
                own.key += first * a_.key_size();
                own.value += first * a_.key_size();
                own.cosines += first * static_cast<size_t>(heads.angle_stride);
                own.sines += first * static_cast<size_t>(heads.angle_stride);
            }
            launch((*kernels_)(kernel), {chunks, static_cast<unsigned>(a_.heads / n), count},
                   kThreads, chunk_shared(a_.head_size, n), rows, heads,
                   static_cast<const float*>(at.query + at_row), cache_, layer, at.partials,
                   merges ? at.arrivals : nullptr, slice, static_cast<int>(n), own);
            if (merges) continue;
            if (floats) {
                launch((*kernels_)("attention_merge_floats"), {pieces, count},
                       static_cast<unsigned>(kChunk), merge_shared, rows, heads, at.partials,
                       at.attended + at_row, static_cast<int>(a_.query_size()));
                continue;
            }
            launch((*kernels_)(m == 1 ? "attention_merge_one" : "attention_merge_many"),
                   {pieces, count}, static_cast<unsigned>(kChunk), merge_shared, rows, heads,
                   at.partials, slice);
        }
    }
    if (floats) {
        launch((*kernels_)("quantize_many"),
               {divided(out.group_stride, 8), static_cast<unsigned>(m)}, kThreads, 0,
               static_cast<const float*>(at.attended), out);
    }
}

// ---- the pass -----------------------------------------------------------------------------------

// The stream's beginning: embeddings with their positions, and the angles for all layers.
void Step::begin(size_t m) {
    const Driver& d = device_->driver();
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const unsigned rows = static_cast<unsigned>(m);
    const int hidden = static_cast<int>(a_.hidden_size);
    check(d.cuMemcpyHtoDAsync_v2(reinterpret_cast<Address>(at.rows), at.staged_rows.as<Row>(),
                                 m * sizeof(Row), stream_.get()),
          "read the tokens");
    if (goes_on()) {
        check(d.cuMemcpyHtoDAsync_v2(reinterpret_cast<Address>(at.residual),
                                     at.staged_stream.as<float>(),
                                     m * a_.hidden_size * sizeof(float), stream_.get()),
              "read the stream");
    }
    // Without a table it makes the angles alone.
    launch((*kernels_)("embed"), {rows}, m <= kFewRows ? 1024 : kThreads, 0,
           static_cast<const Row*>(at.rows), weights_.embedding(), weights_.inverse_frequencies(),
           static_cast<int>(a_.rope_table_count() * (a_.head_size / 2)),
           static_cast<const unsigned char*>(at.axes), static_cast<int>(a_.head_size / 2),
           at.residual, at.cosines, at.sines);
    for (size_t t = 0; embeddings_ != nullptr && t < m; ++t) {
        if (embeddings_[t] == nullptr) continue;
        check(d.cuMemcpyHtoDAsync_v2(reinterpret_cast<Address>(at.residual + t * a_.hidden_size),
                                     embeddings_[t], a_.hidden_size * sizeof(float), stream_.get()),
              "read the embeddings");
    }
    if (weights_.learned_positions() != nullptr) {
        launch((*kernels_)("add_positions"), {rows}, kThreads, 0, static_cast<const Row*>(at.rows),
               weights_.learned_positions(), hidden, at.residual);
    }
    if (weights_.embedding_norm().weight != nullptr) {
        launches().norm(at.residual, nullptr, weights_.embedding_norm(), m, a_.hidden_size,
                        kNormInPlace);
    }
}

// The stream of pictures' rows takes up what the tap of a layer's number has made of them; the tap
// is what stands behind the row's embedding.
void Step::add_tap(size_t m, size_t number) {
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const size_t hidden = a_.hidden_size;
    for (size_t t = 0; t < m;) {
        const size_t first = t;
        for (; t < m && embeddings_[t] != nullptr; ++t) {
            check(
                device_->driver().cuMemcpyHtoDAsync_v2(
                    reinterpret_cast<Address>(at.tap + t * hidden),
                    embeddings_[t] + (1 + number) * hidden, hidden * sizeof(float), stream_.get()),
                "read the embeddings");
        }
        if (const size_t count = (t - first) * hidden; count > 0) {
            launch((*kernels_)("add"), {divided(count, kThreads)}, kThreads, 0,
                   at.residual + first * hidden, static_cast<const float*>(at.tap + first * hidden),
                   static_cast<int>(count));
        }
        while (t < m && embeddings_[t] == nullptr) ++t;
    }
}

// What a branch ends with: the stream takes up W x + bias, by Architecture::norm_places.
void Step::add_to_stream(const Matrix& w, const NormWeights& post_norm, const Source& x, size_t m) {
    Arrays& at = *arrays_;
    if (post_norm.weight == nullptr) {
        multiply({{&w, at.residual}}, x, m, true);
        return;
    }
    multiply({{&w, at.branch}}, x, m, false);
    launches().norm(at.residual, at.branch, post_norm, m, a_.hidden_size,
                    a_.norm_places == NormPlaces::kStream ? kNormSum : kAddNormed);
}

void Step::attention(size_t m, const std::vector<Run>& runs, size_t layer, unsigned chunks) {
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const LayerAddresses& w = weights_.layers()[layer];
    const Source normed = {activations(at.codes, at.side, a_.hidden_size, w.query.group_size),
                           at.residual, w.attention_norm};
    multiply({{&w.query, at.query}, {&w.key, at.key}, {&w.value, at.value}}, normed, m, false);
    if (a_.qk_norm == QkNorm::kWidth) {
        launches().norm(at.query, nullptr, w.query_norm, m, a_.query_size(), kNormInPlace);
        launches().norm(at.key, nullptr, w.key_norm, m, a_.key_size(), kNormInPlace);
    }
    const size_t table = a_.rope_tables.empty() ? 0 : a_.rope_tables[layer];
    const size_t angles = table * (a_.head_size / 2);
    FreshRows fresh = {at.key, at.value, at.cosines + angles, at.sines + angles};
    // Rows of one sequence see each other, so keys and values must be in the cache first.
    if (runs.size() != m) {
        launch((*kernels_)("prepare"),
               {divided(a_.heads + 2 * a_.kv_heads, 4), static_cast<unsigned>(m)}, 128, 0,
               static_cast<const Row*>(at.rows), heads_of(a_, weights_, layer), at.query, fresh.key,
               fresh.value, fresh.cosines, fresh.sines, cache_, static_cast<int>(layer));
        fresh = {};
    }
    attend(m, runs, static_cast<int>(layer), chunks, fresh);
    const Source x = {
        activations(at.codes, at.side, a_.query_size(), w.attention_output.group_size),
        nullptr,
        {}};
    if (a_.parallel) {
        multiply({{&w.attention_output, at.branch}}, x, m, false);
    } else {
        add_to_stream(w.attention_output, w.attention_post_norm, x, m);
    }
}

// act(W_gate x) * W_up x, or act(W_up x) * scales without a gate, as `down` reads it.
Source Step::activate(const Matrix& gate, const Matrix& up, const Matrix& down, const float* scales,
                      const Source& x, size_t m) {
    Arrays& at = *arrays_;
    const bool gated = gate.rows != 0;
    const int activation = static_cast<int>(a_.activation);
    Source activated = {
        activations(at.codes, at.side, static_cast<size_t>(down.columns), down.group_size),
        nullptr,
        {}};
    if (gated && m == 1 && gate.bits == up.bits) {
        Products pair = {};
        pair.matrix[0] = gate;
        pair.matrix[1] = up;
        pair.out[0] = at.gate;
        pair.count = 2;
        pair.activation = activation;
        if (walks(gate, m)) {
            walk_row(awqe_cuda::kWalkGate, pair, x);
        } else {
            if (x.x != nullptr) launches().quantize(x.x, x.norm, x.codes, m);
            launches().gemv("_gate", pair, x.codes);
        }
        activated.x = at.gate;
        return activated;
    }
    const float* factor = scales;
    if (gated) {
        multiply({{&gate, at.gate}, {&up, at.up}}, x, m, false);
        factor = at.up;
    } else {
        multiply({{&up, at.gate}}, x, m, false);
    }
    launches().activate(at.gate, factor, gated ? static_cast<size_t>(up.rows) : 0, activation,
                        activated.codes, m);
    return activated;
}

void Step::feed_forward(size_t m, size_t layer) {
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const LayerAddresses& w = weights_.layers()[layer];
    const Source x = {activations(at.codes, at.side, a_.hidden_size, w.up.group_size), at.residual,
                      w.feed_forward_norm};
    const Source activated = activate(w.gate, w.up, w.down, w.activation_scales, x, m);
    if (a_.parallel) {
        // The norm above has read the stream without what attention gave.
        const size_t count = m * a_.hidden_size;
        launch((*kernels_)("add"), {divided(count, kThreads)}, kThreads, 0, at.residual,
               static_cast<const float*>(at.branch), static_cast<int>(count));
    }
    add_to_stream(w.down, w.feed_forward_post_norm, activated, m);
}

// Rows of the stream to the kept ones, in the order of `wanted`. `staged`: their numbers, in memory
// that the GPU reads by itself.
void Step::keep(const std::vector<Wanted>& wanted, unsigned* staged) {
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    for (size_t i = 0; i < wanted.size(); ++i) staged[i] = wanted[i].row;
    check(device_->driver().cuMemcpyHtoDAsync_v2(reinterpret_cast<Address>(at.wanted), staged,
                                                 wanted.size() * sizeof(unsigned), stream_.get()),
          "read the tokens");
    launch((*kernels_)("gather"), {static_cast<unsigned>(wanted.size())}, kThreads, 0,
           static_cast<const float*>(at.residual), static_cast<const unsigned*>(at.wanted),
           static_cast<int>(a_.hidden_size), at.kept);
}

// What the head reads of some rows, before it is quantised.
void Step::hand_out_hidden(const std::vector<Wanted>& hidden) {
    if (hidden.empty()) return;
    Arrays& at = *arrays_;
    keep(hidden, at.staged_wanted.as<unsigned>() + at.most_rows);
    if (weights_.output_norm().weight != nullptr) {
        launches().norm(at.kept, nullptr, weights_.output_norm(), hidden.size(), a_.hidden_size,
                        kNormInPlace);
    }
    const size_t bytes = a_.hidden_size * sizeof(float);
    for (size_t i = 0; i < hidden.size(); ++i) {
        check(device_->driver().cuMemcpyDtoHAsync_v2(hidden[i].numbers,
                                                     reinterpret_cast<Address>(at.kept) + i * bytes,
                                                     bytes, stream_.get()),
              "hand out what the head reads");
    }
}

void Step::head(size_t m, const std::vector<Wanted>* wanted, Answers answers) {
    const Driver& d = device_->driver();
    const Launcher launch(*device_, stream_.get());
    Arrays& at = *arrays_;
    const size_t count = wanted == nullptr ? m : wanted->size();
    const float* last = at.residual;
    if (wanted != nullptr && count > 0) {
        keep(*wanted, at.staged_wanted.as<unsigned>());
        last = at.kept;
    }
    // Logits of many rows would take more memory than all else: some at a time.
    const Matrix& head = weights_.head();
    const size_t bytes = a_.vocabulary_size * sizeof(float);
    for (size_t done = 0; done < count; done += kSlicedRows) {
        const size_t some = std::min(kSlicedRows, count - done);
        const Source x = {activations(at.codes, at.side, a_.hidden_size, head.group_size),
                          last + done * a_.hidden_size, weights_.output_norm()};
        multiply({{&head, at.logits}}, x, some, false);
        if (a_.logit_cap != 0) {
            const size_t numbers = some * a_.vocabulary_size;
            launch((*kernels_)("cap"), {divided(numbers, kThreads)}, kThreads, 0, at.logits,
                   static_cast<int>(numbers), a_.logit_cap);
        }
        if (answers.kept) {
            launch((*kernels_)("likeliest"),
                   {divided(a_.vocabulary_size, kLikeliestNumbers), static_cast<unsigned>(some)},
                   kThreads, 0, static_cast<const float*>(at.logits),
                   static_cast<int>(a_.vocabulary_size), static_cast<const Row*>(at.rows),
                   wanted == nullptr ? nullptr : static_cast<const unsigned*>(at.wanted + done),
                   at.logit_parts, at.arrivals, at.staged_likeliest.as<Likeliest>() + done,
                   static_cast<int>(at.most_rows),
                   wanted == nullptr ? at.staged_rows.as<Row>() : nullptr);
        }
        if (!answers.handed_out) continue;
        const Address from = reinterpret_cast<Address>(at.logits);
        if (wanted == nullptr) {
            check(d.cuMemcpyDtoHAsync_v2(at.staged_logits.as<float>(), from, some * bytes,
                                         stream_.get()),
                  "hand out the logits");
            continue;
        }
        for (size_t i = 0; i < some; ++i) {
            if ((*wanted)[done + i].numbers == nullptr) continue;
            check(d.cuMemcpyDtoHAsync_v2((*wanted)[done + i].numbers, from + i * bytes, bytes,
                                         stream_.get()),
                  "hand out the logits");
        }
    }
}

void Step::enqueue(size_t m, const std::vector<Run>& runs, const std::vector<Wanted>* wanted,
                   Answers answers, unsigned chunks) {
    begin(m);
    for (size_t layer = 0; layer < weights_.layers().size(); ++layer) {
        attention(m, runs, layer, chunks);
        if (weights_.layers()[layer].router == nullptr) {
            feed_forward(m, layer);
        } else {
            mixture_of_experts(m, layer);
        }
        if (layer < taps_ && embeddings_ != nullptr) add_tap(m, layer);
    }
    head(m, wanted, answers);
}

// Of a pass that has ended: what its rows' likeliest tokens are.
void Step::hand_out(const std::vector<Wanted>& wanted, const std::vector<Row>& rows) const {
    const Likeliest* const staged = arrays_->staged_likeliest.as<Likeliest>();
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i].likeliest == nullptr) continue;
        const bool odd = rows[wanted[i].row].position % 2 != 0;
        *wanted[i].likeliest = staged[(odd ? arrays_->most_rows : 0) + i];
    }
}

void Step::run(const std::vector<Row>& rows, const std::vector<Run>& runs,
               const std::vector<Wanted>& wanted, const std::vector<Wanted>& hidden,
               const std::vector<const float*>& embeddings) {
    const Driver& d = device_->driver();
    Arrays& at = *arrays_;
    const size_t m = rows.size();
    embeddings_ = embeddings.empty() || goes_on() ? nullptr : embeddings.data();
    Answers answers = {};
    for (const Wanted& each : wanted) {
        answers.kept = answers.kept || each.likeliest != nullptr;
        answers.handed_out = answers.handed_out || each.numbers != nullptr;
    }
    const unsigned chunks = chunks_of(rows);
    // A step that decodes is recorded once and replayed: the host then starts one graph instead of
    // some hundred kernels. Where the host chooses experts it has to wait in between.
    const bool decodes = m <= kFewRows && runs.size() == m && wanted.size() == m &&
                         hidden.empty() && embeddings_ == nullptr && a_.experts == 0;
    const bool expected =
        decodes && answers == Answers{true, false} &&
        std::equal(rows.begin(), rows.end(), foretold_.begin(), foretold_.end(), same);
    if (!expected) settle();
    if (expected) ++followed_;
    const bool begun = ahead_;
    if (!begun) std::copy(rows.begin(), rows.end(), at.staged_rows.as<Row>());
    if (goes_on()) {
        float* to = at.staged_stream.as<float>();
        for (const float* row : embeddings) to = std::copy_n(row, a_.hidden_size, to);
    }
    if (!decodes) {
        enqueue(m, runs, &wanted, answers, chunks);
        hand_out_hidden(hidden);
        check(d.cuStreamSynchronize(stream_.get()), "finish a step");
        hand_out(wanted, rows);
        return;
    }
    if (!begun) {
        // The first time as it is: kernels are then loaded, which a recording could not wait for.
        const unsigned rounded = recorded_chunks(chunks);
        const auto [at_graph, first_time] = graphs_.try_emplace({m, rounded, answers}, nullptr);
        GraphExec& graph = at_graph->second;
        if (first_time) {
            enqueue(m, runs, nullptr, answers, rounded);
        } else {
            if (graph == nullptr) graph = recorded(m, runs, answers, rounded);
            check(d.cuGraphLaunch(graph, stream_.get()), "start a step");
        }
    }
    const bool room =
        std::all_of(runs.begin(), runs.end(), [](const Run& run) { return run.has_room; });
    if (!room || goes_on() || followed_ < kFollowed || !run_ahead(rows, answers, begun)) {
        ahead_ = false;
        check(d.cuStreamSynchronize(stream_.get()), "finish a step");
    }
    hand_out(wanted, rows);
    foretell(rows, wanted);
    for (size_t i = 0; i < m; ++i) {
        if (wanted[i].numbers == nullptr) continue;
        std::copy_n(at.staged_logits.as<float>() + wanted[i].row * size_t{a_.vocabulary_size},
                    a_.vocabulary_size, wanted[i].numbers);
    }
}

// Starts the pass behind the one of `rows`, whose kernels leave its rows in staged memory, and
// waits for the one of `rows` alone. False where it is not recorded so far.
bool Step::run_ahead(const std::vector<Row>& rows, Answers answers, bool begun) {
    const Driver& d = device_->driver();
    std::vector<Row> next = rows;
    for (Row& row : next) ++row.position;
    const auto graph = graphs_.find({rows.size(), recorded_chunks(chunks_of(next)), answers});
    if (graph == graphs_.end() || graph->second == nullptr) return false;
    if (!begun) check(d.cuEventRecord(ends_[end_of_ahead_].get(), stream_.get()), "start a step");
    const Event end = ends_[end_of_ahead_].get();
    check(d.cuGraphLaunch(graph->second, stream_.get()), "start a step");
    ahead_ = true;
    end_of_ahead_ = 1 - end_of_ahead_;
    check(d.cuEventRecord(ends_[end_of_ahead_].get(), stream_.get()), "start a step");
    check(d.cuEventSynchronize(end), "finish a step");
    return true;
}

// What the rows of the next pass are if all go on with what was found likeliest.
void Step::foretell(const std::vector<Row>& rows, const std::vector<Wanted>& wanted) {
    foretold_.clear();
    for (size_t i = 0; i < rows.size() && wanted[i].likeliest != nullptr; ++i) {
        Row next = rows[i];
        next.token = wanted[i].likeliest->token;
        ++next.position;
        for (int& turn : next.turns) ++turn;
        foretold_.push_back(next);
    }
}

GraphExec Step::recorded(size_t m, const std::vector<Run>& runs, Answers answers, unsigned chunks) {
    const Driver& d = device_->driver();
    check(d.cuStreamBeginCapture_v2(stream_.get(), 1),
          "record a step");  // 1: this thread's calls alone
    Graph graph = nullptr;
    try {
        enqueue(m, runs, nullptr, answers, chunks);
    } catch (...) {
        d.cuStreamEndCapture(stream_.get(), &graph);
        if (graph != nullptr) d.cuGraphDestroy(graph);
        throw;
    }
    check(d.cuStreamEndCapture(stream_.get(), &graph), "record a step");
    GraphExec executable = nullptr;
    const Status status = d.cuGraphInstantiateWithFlags(&executable, graph, 0);
    d.cuGraphDestroy(graph);
    check(status, "record a step");
    return executable;
}

void Step::forget_graphs() {
    for (const auto& [key, graph] : graphs_) {
        if (graph != nullptr) device_->driver().cuGraphExecDestroy(graph);
    }
    graphs_.clear();
}

}  // namespace awqe::cuda
