// Rows of a block as the GPU's pass takes them; see cuda_backend.h.
#include "native/cuda/cuda_backend.h"

#include <unistd.h>

#include <algorithm>
#include <functional>

#include "native/failure/failure.h"
#include "native/runtime/kv_cache.h"

namespace awqe::cuda {
namespace {

using awqe_cuda::kAttentionChunk;

// Rows of a pass: enough tiles of 128 to fill the GPU, also with a narrow model's matrices; where
// CPU and GPU share a few gigabytes, what a layer's feed-forward takes for them counts. Behind
// layers of a CPU, what that takes at once.
constexpr size_t kRowsLarge = 2048;
constexpr int kLarge = 100;  // multiprocessors
constexpr size_t kRows = 1024;
constexpr size_t kRowsIntegrated = 256;

CacheShape shape_of(const Architecture& a, KvType type) {
    return cache_shape(a.kv_heads, a.head_size, a.layers, type == KvType::kS8);
}

// A decoder of the layers from `first` on.
Architecture layers_from(const Architecture& a, size_t first) {
    Architecture part = a;
    part.layers = a.layers - static_cast<uint32_t>(first);
    for (std::vector<uint32_t>* each :
         {&part.rope_tables, &part.expert_layers, &part.sliding_windows}) {
        if (!each->empty()) {
            each->erase(each->begin(), each->begin() + static_cast<std::ptrdiff_t>(first));
        }
    }
    return part;
}

size_t rows_of_pass(const DeviceFacts& facts, size_t first_layer) {
    if (first_layer > 0) return kBlockTokens;
    if (facts.integrated) return kRowsIntegrated;
    return facts.multiprocessors >= kLarge ? kRowsLarge : kRows;
}

// Keys and values.
size_t sequence_bytes(const Architecture& a, const SequencePlan& plan) {
    const size_t chunks = (plan.positions + kAttentionChunk - 1) / kAttentionChunk;
    return chunks * static_cast<size_t>(shape_of(a, plan.kv_type).chunk_bytes);
}

// Logits of the last row and of the one before it.
size_t kept_bytes(const Architecture& a) { return 2 * size_t{a.vocabulary_size} * sizeof(float); }

}  // namespace

// The whole cache of a sequence: no layer forgets, so one may go back to any position. And the
// logits of its last row, where that keeps them.
class CudaBackend::CudaSequence final : public Sequence, public KeptLogits {
  public:
    // The context is current.
    CudaSequence(CudaBackend& backend, const std::shared_ptr<Device>& device, const Architecture& a,
                 const SequencePlan& plan)
        : type(plan.kv_type),
          on_tensor_cores(plan.on_tensor_cores),
          positions(plan.positions),
          backend_(backend),
          device_(device),
          architecture_(a),
          shape_(shape_of(a, plan.kv_type)),
          cache_(device, sequence_bytes(a, plan)),
          kept_(device, kept_bytes(a)) {}
    ~CudaSequence() override {
        device_->with_context([&] {
            backend_.settle();
            cache_ = Buffer();
            kept_ = Buffer();
        });
    }

    size_t earliest(size_t) const override { return 0; }
    unsigned char* cache() const { return cache_.as<unsigned char>(); }

    const KeptLogits* kept_logits() const override { return this; }
    Likeliest likeliest() const override { return {found_.token, found_.not_finite}; }
    void copy(float* logits) const override {
        const Device::Use use(*device_);
        const size_t bytes = kept_.bytes() / 2;
        check(device_->driver().cuMemcpyDtoH_v2(
                  logits, kept_.address() + (kept_position_ % 2 != 0 ? bytes : 0), bytes),
              "hand out the logits");
    }
    // Of a row that is about to be computed: where its logits stay, and what is found of them.
    float* keep(size_t position) {
        kept_position_ = position;
        return kept_.as<float>();
    }
    awqe_cuda::Likeliest* found() { return &found_; }

    // The bytes are runtime/kv_cache.h's.
    bool saved_all(size_t end) const override {
        const std::vector<uint32_t>& windows = architecture_.sliding_windows;
        return std::all_of(windows.begin(), windows.end(),
                           [&](uint32_t window) { return first_saved_position(window, end) == 0; });
    }
    size_t saved_bytes(size_t begin, size_t end) const override {
        size_t total = 0;
        visit_saved(begin, end, [&](Address, size_t bytes) { total += bytes; });
        return total;
    }
    void save(size_t begin, size_t end, uint8_t* bytes) const override {
        const Device::Use use(*device_);
        visit_saved(begin, end, [&](Address address, size_t size) {
            check(device_->driver().cuMemcpyDtoH_v2(bytes, address, size), "save a context");
            bytes += size;
        });
    }
    void restore(size_t begin, size_t end, const uint8_t* bytes) override {
        const Device::Use use(*device_);
        backend_.settle();
        const Driver& d = device_->driver();
        // There when this ends: a step's stream is not ordered with other streams' copies.
        const OwnedStream stream = open_stream(d);
        visit_saved(begin, end, [&](Address address, size_t size) {
            check(d.cuMemcpyHtoDAsync_v2(address, bytes, size, stream.get()), "take up a context");
            bytes += size;
        });
        check(d.cuStreamSynchronize(stream.get()), "take up a context");
    }

    const KvType type;
    const bool on_tensor_cores;
    const size_t positions;  // that there is room for

  private:
    // Runs of positions of one head that lie in one chunk, in the order in which they are saved.
    template <class Visit>
    void visit_saved(size_t begin, size_t end, const Visit& visit) const {
        const size_t element = shape_.int8 != 0 ? 1 : 2;
        const size_t number_bytes = architecture_.head_size * element;
        for (size_t layer = 0; layer < architecture_.layers; ++layer) {
            const size_t first =
                std::max(begin, first_saved_position(architecture_.sliding_windows[layer], end));
            for (size_t head = 0; head < architecture_.kv_heads; ++head) {
                const auto rows = [&](long long offset, size_t bytes) {
                    for (size_t at = first; at < end;) {
                        const size_t chunk = at / kAttentionChunk;
                        const size_t chunk_end = std::min(end, (chunk + 1) * kAttentionChunk);
                        const size_t row = head * kAttentionChunk + at % kAttentionChunk;
                        visit(cache_.address() + chunk * static_cast<size_t>(shape_.chunk_bytes) +
                                  layer * static_cast<size_t>(shape_.layer_bytes) +
                                  static_cast<size_t>(offset) + row * bytes,
                              (chunk_end - at) * bytes);
                        at = chunk_end;
                    }
                };
                rows(0, number_bytes);
                rows(shape_.values_offset, number_bytes);
                if (shape_.int8 == 0) continue;
                rows(shape_.key_scales_offset, sizeof(float));
                rows(shape_.value_scales_offset, sizeof(float));
            }
        }
    }

    CudaBackend& backend_;
    const std::shared_ptr<Device> device_;
    const Architecture& architecture_;
    const CacheShape shape_;
    Buffer cache_;
    Buffer kept_;  // float [2, vocabulary]: by whether the position is odd
    size_t kept_position_ = 0;
    awqe_cuda::Likeliest found_ = {};
};

GpuNeed gpu_need(const Model& model, const SequencePlan& plan, size_t first_layer,
                 const DeviceFacts& facts) {
    const Architecture a = layers_from(model.architecture(), first_layer);
    const size_t taps = first_layer == 0 ? taps_of(model) : 0;
    return {Weights::bytes(model, first_layer), sequence_bytes(a, plan),
            kept_bytes(a) + Step::bytes(a, rows_of_pass(facts, first_layer), taps)};
}

CudaBackend::CudaBackend(const Model& model, size_t first_layer)
    : device_(Device::shared()),
      architecture_(layers_from(model.architecture(), first_layer)),
      rows_(rows_of_pass(device_->facts(), first_layer)),
      taps_(first_layer == 0 ? taps_of(model) : 0),
      process_(getpid()) {
    const Device::Use use(*device_);
    weights_ = std::make_unique<Weights>(device_, model, first_layer);
}

CudaBackend::~CudaBackend() {
    device_->with_context([&] {
        for (std::unique_ptr<Step>& step : steps_) step.reset();
        weights_.reset();
    });
}

size_t CudaBackend::block_rows() const { return rows_; }

size_t CudaBackend::cache_bytes(const SequencePlan& plan) const {
    return sequence_bytes(architecture_, plan);
}

size_t CudaBackend::scratch_bytes(const SequencePlan&) const {
    return kept_bytes(architecture_) + Step::bytes(architecture_, rows_, taps_);
}

// No step runs ahead any more in a sequence. The context is current.
void CudaBackend::settle() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const std::unique_ptr<Step>& step : steps_) {
        if (step != nullptr) step->settle();
    }
}

std::unique_ptr<Sequence> CudaBackend::open(const SequencePlan& plan) {
    std::unique_ptr<CudaSequence> sequence;  // closing one takes the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    const Device::Use use(*device_);
    // Both are allocated, or nothing is.
    const bool steps = steps_[plan.kv_type == KvType::kS8 ? 1 : 0] == nullptr;
    const uint64_t needed =
        cache_bytes(plan) + (steps ? scratch_bytes(plan) : kept_bytes(architecture_));
    const uint64_t room = device_->free_bytes();
    if (needed > room) {
        fail(AWQE_OUT_OF_MEMORY,
             "a context of %zu tokens takes %.2f GB and the GPU %s has %.2f GB free: ask for a "
             "shorter one, or say --device cpu",
             plan.positions, static_cast<double>(needed) / 1e9, device_->facts().name.c_str(),
             static_cast<double>(room) / 1e9);
    }
    sequence = std::make_unique<CudaSequence>(*this, device_, architecture_, plan);
    step_for(plan.kv_type);
    return sequence;
}

Step& CudaBackend::step_for(KvType type) {
    std::unique_ptr<Step>& step = steps_[type == KvType::kS8 ? 1 : 0];
    if (step == nullptr) {
        step = std::make_unique<Step>(device_, architecture_, *weights_,
                                      shape_of(architecture_, type), rows_, taps_);
    }
    return *step;
}

void CudaBackend::evaluate(const Block& block) {
    if (getpid() != process_) {
        fail(AWQE_UNSUPPORTED,
             "the GPU cannot be used in a process that was forked off after the model was opened: "
             "open it there, or use the CPU");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const Device::Use use(*device_);
    for (const KvType type : {KvType::kF16, KvType::kS8}) evaluate_type(block, type);
}

// The block's rows whose sequences keep keys and values as `type`. Rows of one sequence follow each
// other in the pass: those with logits, which the block has last, join the rest.
void CudaBackend::evaluate_type(const Block& block, KvType type) {
    pass_.clear();
    for (size_t i = 0; i < block.count; ++i) {
        const auto& sequence = static_cast<const CudaSequence&>(*block.rows[i].sequence);
        if (sequence.type == type) pass_.push_back(&block.rows[i]);
    }
    if (pass_.empty()) return;
    std::stable_sort(pass_.begin(), pass_.end(), [](const awqe::Row* a, const awqe::Row* b) {
        return a->sequence != b->sequence ? std::less<>()(a->sequence, b->sequence)
                                          : a->position < b->position;
    });
    std::vector<Row> rows;
    std::vector<Run> runs;
    std::vector<Wanted> wanted;
    std::vector<Wanted> hidden;
    std::vector<const float*> embeddings;
    bool embedded = false;
    for (const awqe::Row* row : pass_) {
        const unsigned number = static_cast<unsigned>(rows.size());
        if (number == 0 || pass_[number - 1]->sequence != row->sequence) {
            const auto& sequence = static_cast<const CudaSequence&>(*row->sequence);
            runs.push_back({number, 0, sequence.on_tensor_cores, false});
        }
        ++runs.back().count;
        // All of a token's are its position where a position has one number.
        const auto turn = [&](size_t axis) {
            return static_cast<int>(architecture_.rope_sections.empty() ? row->position
                                                                        : row->turns.numbers[axis]);
        };
        runs.back().has_room =
            row->position + 1 < static_cast<const CudaSequence&>(*row->sequence).positions;
        rows.push_back({row->embedding == nullptr ? row->token : 0,
                        static_cast<int>(row->position),
                        static_cast<const CudaSequence&>(*row->sequence).cache(),
                        {turn(0), turn(1), turn(2)},
                        nullptr});
        embeddings.push_back(row->embedding);
        embedded = embedded || row->embedding != nullptr;
        if (row->logits != nullptr) wanted.push_back({number, row->logits, nullptr});
        if (row->keeps_logits) {
            auto& sequence = static_cast<CudaSequence&>(*row->sequence);
            rows.back().kept = sequence.keep(row->position);
            wanted.push_back({number, nullptr, sequence.found()});
        }
        if (row->hidden != nullptr) hidden.push_back({number, row->hidden, nullptr});
    }
    if (!embedded) embeddings.clear();
    step_for(type).run(rows, runs, wanted, hidden, embeddings);
}

}  // namespace awqe::cuda
