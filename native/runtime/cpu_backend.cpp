// Who computes, with how many threads and in which memory; see cpu_backend.h.
#include "native/runtime/cpu_backend.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "native/failure/failure.h"
#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"

namespace awqe {
namespace {

// Up to here a block's time is that of reading the weights and of waiting, not of computing.
constexpr size_t kFewRows = 16;

// How often the system has taken the core from this thread before it was willing to give it up.
long interruptions() {
    rusage usage = {};
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

// The most rows that go through the layers together.
size_t most_rows(const Model& model) { return std::max(kBlockTokens, model.picture_rows()); }

KvPlan kv_plan(const Model& model, const SequencePlan& plan) {
    return {plan.positions, std::min(most_rows(model), plan.positions), plan.kv_type};
}

Architecture first_layers(const Model& model, size_t layers) {
    Architecture a = model.architecture();
    a.layers = static_cast<uint32_t>(layers);
    return a;
}

unsigned most_threads(const SequencePlan& plan) {
    return std::max(plan.threads, plan.prefill_threads);
}

}  // namespace

const KernelTable* table_called(const char* name) {
    std::string problem;
    const KernelTable* table = choose_kernels(name, cpu_features(), &problem);
    if (table == nullptr) fail(AWQE_UNSUPPORTED, "%s", problem.c_str());
    return table;
}

// A sequence's own part: its cache, and what its decoding has shown about the machine.
class CpuBackend::CpuSequence final : public CachedSequence {
  public:
    CpuSequence(CpuBackend& backend, const SequencePlan& plan)
        : CachedSequence(backend.cached_, kv_plan(backend.model_, plan)),
          decode_team(plan.threads),
          few_rows_team(plan.prefill_threads),
          prefill_threads(plan.prefill_threads),
          backend_(backend) {
        ++backend_.sequences_;
    }
    ~CpuSequence() override { backend_.forget_sequence(); }

    TeamSize decode_team;    // for one row
    TeamSize few_rows_team;  // for blocks of few rows that begin with one of this sequence
    const unsigned prefill_threads;

  private:
    CpuBackend& backend_;
};

// What one evaluation computes in.
struct CpuBackend::Workspace {
    Workspace(const CpuBackend& backend, unsigned thread_count)
        : threads(thread_count),
          pages(backend.workspace_bytes(threads), PageSize::kSmall),
          activations([&] {
              Arena arena(pages);
              return Activations(backend.model_, most_rows(backend.model_), threads, arena);
          }()) {}

    const unsigned threads;
    const PageRegion pages;
    const Activations activations;
};

// Those that nobody computes in: as many as there were evaluations at the same time.
struct CpuBackend::Workspaces {
    std::mutex mutex;
    std::vector<std::unique_ptr<Workspace>> idle;
    size_t all = 0;  // idle or not

    // One for `threads` threads; a new one if there is none.
    std::unique_ptr<Workspace> take(const CpuBackend& backend, unsigned threads) {
        const std::lock_guard<std::mutex> lock(mutex);
        const auto found = std::find_if(idle.begin(), idle.end(), [&](const auto& workspace) {
            return workspace->threads >= threads;
        });
        if (found == idle.end()) {
            idle.reserve(all + 1);  // so that giving it back allocates nothing
            auto made = std::make_unique<Workspace>(backend, threads);
            ++all;
            return made;
        }
        std::unique_ptr<Workspace> taken = std::move(*found);
        idle.erase(found);
        return taken;
    }

    void give_back(std::unique_ptr<Workspace> workspace) {
        const std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(workspace));
    }

    void free_idle() {
        const std::lock_guard<std::mutex> lock(mutex);
        all -= idle.size();
        idle.clear();
    }
};

// A workspace for the length of one evaluation.
class CpuBackend::Borrowed {
  public:
    Borrowed(CpuBackend& backend, unsigned threads)
        : from_(backend.workspaces()), workspace_(from_.take(backend, threads)) {}
    ~Borrowed() { from_.give_back(std::move(workspace_)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    const Activations& activations() const { return workspace_->activations; }

  private:
    Workspaces& from_;
    std::unique_ptr<Workspace> workspace_;
};

CpuBackend::CpuBackend(const Model& model, const KernelTable& kernels, size_t layers)
    : model_(model), cached_(first_layers(model, layers)), kernels_(kernels) {}

CpuBackend::~CpuBackend() = default;

CpuBackend::Workspaces& CpuBackend::workspaces() {
    return workspaces_.get([] { return std::make_unique<Workspaces>(); });
}

size_t CpuBackend::workspace_bytes(unsigned threads) const {
    Arena counting;
    Activations(model_, most_rows(model_), threads, counting);
    return counting.used();
}

size_t CpuBackend::cache_bytes(const SequencePlan& plan) const {
    return KvCache::bytes(cached_, kv_plan(model_, plan));
}

size_t CpuBackend::scratch_bytes(const SequencePlan& plan) const {
    return workspace_bytes(most_threads(plan));
}

std::unique_ptr<Sequence> CpuBackend::open(const SequencePlan& plan) {
    auto sequence = std::make_unique<CpuSequence>(*this, plan);
    pool_.reserve(most_threads(plan));
    const Borrowed workspace(*this, most_threads(plan));  // there is one from now on
    model_.expect_use();
    return sequence;
}

void CpuBackend::forget_sequence() {
    if (--sequences_ > 0) return;
    if (Workspaces* const all = workspaces_.find(); all != nullptr) all->free_idle();
}

void CpuBackend::evaluate(const Block& block) {
    const auto sequence = [&](size_t t) -> CpuSequence& {
        return static_cast<CpuSequence&>(*block.rows[t].sequence);
    };
    // Few rows wait for each other as often as one, so that a member which the system has put aside
    // costs as much.
    TeamSize* const team_size = block.count == 1          ? &sequence(0).decode_team
                                : block.count <= kFewRows ? &sequence(0).few_rows_team
                                                          : nullptr;
    unsigned members = 1;
    if (team_size != nullptr) {
        members = team_size->members();
    } else {
        for (size_t t = 0; t < block.count; ++t) {
            members = std::max(members, sequence(t).prefill_threads);
        }
    }
    ThreadPool::Turn turn(pool_, members);
    const Borrowed workspace(*this, members);
    const long before = interruptions();
    const auto start = std::chrono::steady_clock::now();
    turn.run([&](Team& team) {
        forward(model_, kernels_, block, workspace.activations(), team, cached_.layers);
    });
    if (team_size == nullptr) return;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    team_size->record(seconds.count(), interruptions() - before);
}

}  // namespace awqe
