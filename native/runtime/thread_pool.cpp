// Seats, starting, waiting and the barrier; see thread_pool.h.
#include "native/runtime/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <vector>

#include "native/failure/failure.h"
#include "native/runtime/cpus.h"

namespace awqe {
namespace {

// Some tens of microseconds: longer than the distance between two barriers of a layer, shorter than
// a timer tick.
constexpr int kSpins = 2000;

// What a member takes of the grains that are left of its own part, and of another's. The first
// range of a part is its longest, so its length is what a member whose core another program takes
// can keep from the others.
constexpr size_t kOwnShare = 4;
constexpr size_t kOthersShare = 2;

// Tells the core that this is a waiting loop.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // stalls some tens of cycles; `yield` is free on most cores
#endif
}

// A word that threads wait for, on its own cache line.
struct alignas(64) Signal {
    std::atomic<uint32_t> value{0};
};

// Returns when `word` no longer holds `value`, seeing everything that was written before it
// changed.
void wait_while(const Signal& word, uint32_t value, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (word.value.load(std::memory_order_acquire) != value) return;
        relax();
    }
    while (word.value.load(std::memory_order_acquire) == value) {
        word.value.wait(value, std::memory_order_acquire);
    }
}

// How many grains of a member's part have been handed out, on its own cache line: in the low half
// those from its front, in the high half those from its back.
struct alignas(64) Cursor {
    std::atomic<uint64_t> value{0};
};

// Moves the calling thread to the fast cores for a while, where there are slow ones.
class OnFastCores {
  public:
    explicit OnFastCores(const FastCpus& cpus) {
        moved_ = cpus.differ &&
                 pthread_getaffinity_np(pthread_self(), sizeof(before_), &before_) == 0 &&
                 pthread_setaffinity_np(pthread_self(), sizeof(cpus.set), &cpus.set) == 0;
    }
    ~OnFastCores() {
        if (moved_) pthread_setaffinity_np(pthread_self(), sizeof(before_), &before_);
    }
    OnFastCores(const OnFastCores&) = delete;
    OnFastCores& operator=(const OnFastCores&) = delete;

  private:
    cpu_set_t before_;
    bool moved_;
};

}  // namespace

// What the members of one run share. Kept for later runs: a worker that has just left a run may
// still look at its words.
struct ThreadPool::Run {
    bool busy = false;  // under the crew's lock
    Call call = nullptr;
    const void* context = nullptr;
    unsigned members = 1;
    int spins = 0;                // looks at a word before sleeping
    Worker* first = nullptr;      // the members other than the caller
    Signal unfinished;            // of them, those that are still in the body
    Signal phase;                 // barriers passed
    Signal arrived;               // members waiting at the barrier
    std::vector<Cursor> cursors;  // [members or more]: of the current share()

    // Nothing is handed out yet.
    void begin_share() {
        for (unsigned i = 0; i < members; ++i) cursors[i].value.store(0, std::memory_order_relaxed);
    }
};

struct ThreadPool::Worker {
    Signal start;  // grows by one per run
    std::thread thread;
    // Of its run, written before `start` grows.
    Run* run = nullptr;
    unsigned index = 0;
    Worker* next = nullptr;
    bool busy = false;  // under the crew's lock
};

// The threads of one process.
class ThreadPool::Crew {
  public:
    Crew() : cpus_(fast_cpus()), seats_(available_cpus()) {}
    ~Crew();
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    void reserve(unsigned members);
    Run& sit_down(unsigned members);
    void work(Run& run, Call call, const void* context);
    void stand_up(Run& run);

  private:
    Run& idle_run(unsigned members);
    void hire(size_t count);
    size_t idle_workers() const;
    void serve(Worker& worker);

    const FastCpus cpus_;
    const unsigned seats_;  // members that all runs together may have; one run alone may have more

    std::mutex mutex_;  // of everything below; never held while anybody computes
    std::condition_variable changed_;
    uint64_t asking_ = 0;   // the number that the next caller draws
    uint64_t serving_ = 0;  // whose turn it is to sit down
    unsigned taken_ = 0;    // seats
    std::vector<std::unique_ptr<Worker>> workers_;
    std::vector<std::unique_ptr<Run>> runs_;
    bool stopping_ = false;  // written before the workers' last start
};

ThreadPool::Crew::~Crew() {
    stopping_ = true;
    for (const auto& worker : workers_) {
        worker->start.value.fetch_add(1, std::memory_order_release);
        worker->start.value.notify_one();
    }
    for (const auto& worker : workers_) worker->thread.join();
}

// Starts `count` more threads. Under the lock.
void ThreadPool::Crew::hire(size_t count) {
    for (; count > 0; --count) {
        workers_.reserve(workers_.size() + 1);
        auto worker = std::make_unique<Worker>();
        try {
            worker->thread = std::thread([this, &place = *worker] { serve(place); });
        } catch (const std::system_error&) {
            fail(AWQE_OUT_OF_MEMORY, "the system gives %zu threads of %zu: use fewer",
                 workers_.size() + 1, workers_.size() + 1 + count);
        }
        workers_.push_back(std::move(worker));
    }
}

// A run that nobody uses, with a cursor for each member. Under the lock.
ThreadPool::Run& ThreadPool::Crew::idle_run(unsigned members) {
    Run* found = nullptr;
    for (const auto& run : runs_) {
        if (run->busy) continue;
        if (run->cursors.size() >= members) return *run;
        found = run.get();
    }
    if (found == nullptr) {
        runs_.reserve(runs_.size() + 1);
        runs_.push_back(std::make_unique<Run>());
        found = runs_.back().get();
    }
    found->cursors = std::vector<Cursor>(members);
    return *found;
}

size_t ThreadPool::Crew::idle_workers() const {
    size_t idle = 0;
    for (const auto& worker : workers_) idle += worker->busy ? 0 : 1;
    return idle;
}

void ThreadPool::Crew::reserve(unsigned members) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t workers = members - 1;
    hire(workers - std::min(workers, workers_.size()));
    idle_run(members);
}

// Waits for room; then a run with its workers chosen, until stand_up().
ThreadPool::Run& ThreadPool::Crew::sit_down(unsigned members) {
    const size_t workers = members - 1;
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t number = asking_++;
    Run* run = nullptr;
    for (bool alone = false; run == nullptr; alone = true) {
        changed_.wait(lock, [&] {
            return serving_ == number && (taken_ == 0 || (!alone && taken_ + members <= seats_));
        });
        try {
            hire(workers - std::min(workers, idle_workers()));
            run = &idle_run(members);
        } catch (...) {
            // What the system does not give for two teams side by side it may give one after the
            // other.
            if (taken_ > 0) continue;
            ++serving_;
            changed_.notify_all();
            throw;
        }
    }
    ++serving_;
    changed_.notify_all();
    taken_ += members;
    run->busy = true;
    run->members = members;
    Worker** link = &run->first;
    unsigned index = 1;
    // In order, so that a worker has the same part of the weights in every run of a lone caller.
    for (auto worker = workers_.begin(); index < members; ++worker) {
        if ((*worker)->busy) continue;
        (*worker)->busy = true;
        (*worker)->run = run;
        (*worker)->index = index++;
        *link = worker->get();
        link = &(*worker)->next;
    }
    *link = nullptr;
    return *run;
}

void ThreadPool::Crew::stand_up(Run& run) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Worker* worker = run.first; worker != nullptr; worker = worker->next) {
        worker->busy = false;
    }
    run.busy = false;
    taken_ -= run.members;
    if (asking_ != serving_) changed_.notify_all();
}

void ThreadPool::Crew::work(Run& run, Call call, const void* context) {
    run.call = call;
    run.context = context;
    // With more threads than CPUs, whoever spins keeps the one it waits for from running: then all
    // sleep at once.
    run.spins = run.members <= seats_ ? kSpins : 0;
    run.begin_share();
    run.unfinished.value.store(run.members - 1, std::memory_order_relaxed);
    for (Worker* worker = run.first; worker != nullptr; worker = worker->next) {
        worker->start.value.fetch_add(1, std::memory_order_release);
        worker->start.value.notify_one();
    }
    {
        const OnFastCores on_fast_cores(cpus_);
        Team team(run, 0, run.members);
        call(context, team);
    }
    for (;;) {
        const uint32_t left = run.unfinished.value.load(std::memory_order_acquire);
        if (left == 0) break;
        wait_while(run.unfinished, left, run.spins);
    }
}

void ThreadPool::Crew::serve(Worker& worker) {
    if (cpus_.differ) pthread_setaffinity_np(pthread_self(), sizeof(cpus_.set), &cpus_.set);
    int spins = 0;
    for (uint32_t seen = 0;; ++seen) {
        wait_while(worker.start, seen, spins);
        if (stopping_) return;
        Run& run = *worker.run;
        spins = run.spins;
        Team team(run, worker.index, run.members);
        run.call(run.context, team);
        if (run.unfinished.value.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            run.unfinished.value.notify_one();
        }
    }
}

ThreadPool::ThreadPool() = default;

ThreadPool::ThreadPool(unsigned size) { reserve(size); }

ThreadPool::~ThreadPool() = default;

ThreadPool::Crew& ThreadPool::crew() {
    return crew_.get([] { return std::make_unique<Crew>(); });
}

void ThreadPool::reserve(unsigned members) { crew().reserve(members); }

ThreadPool::Turn::Turn(ThreadPool& pool, unsigned members)
    : crew_(pool.crew()), run_(crew_.sit_down(members)) {}

ThreadPool::Turn::~Turn() { crew_.stand_up(run_); }

void ThreadPool::Turn::run_erased(Call call, const void* context) {
    crew_.work(run_, call, context);
}

bool Team::take(unsigned owner, size_t grains, Range* range) {
    const size_t part_begin = grains * owner / size();
    const size_t part_end = grains * (owner + 1) / size();
    const bool own = owner == index_;
    const size_t divisor = own ? kOwnShare : kOthersShare;
    std::atomic<uint64_t>& cursor = run_.cursors[owner].value;
    uint64_t taken = cursor.load(std::memory_order_relaxed);
    for (;;) {
        const size_t begin = part_begin + (taken & UINT32_MAX);
        const size_t end = part_end - (taken >> 32);
        if (begin >= end) return false;
        const size_t count = (end - begin + divisor - 1) / divisor;
        const uint64_t after = taken + (own ? count : uint64_t{count} << 32);
        if (cursor.compare_exchange_weak(taken, after, std::memory_order_relaxed)) {
            *range = own ? Range{begin, begin + count} : Range{end - count, end};
            return true;
        }
    }
}

void Team::barrier() {
    // Read before arriving: afterwards the last member may move it on.
    const uint32_t phase = run_.phase.value.load(std::memory_order_relaxed);
    if (run_.arrived.value.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
        run_.arrived.value.store(0, std::memory_order_relaxed);
        run_.begin_share();
        run_.phase.value.store(phase + 1, std::memory_order_release);
        run_.phase.value.notify_all();
    } else {
        wait_while(run_.phase, phase, run_.spins);
    }
}

}  // namespace awqe
