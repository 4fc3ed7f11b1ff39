// Starting, waiting and the barrier; see thread_pool.h.
#include "native/runtime/thread_pool.h"

#include <pthread.h>

#include <system_error>

#include "native/api/failure.h"

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

ThreadPool::ThreadPool(unsigned size)
    : cpus_(fast_cpus()), spins_(size <= available_cpus() ? kSpins : 0), cursors_(size) {
    // With more threads than CPUs, whoever spins keeps the one it waits for from running: then all
    // sleep at once.
    for (unsigned i = 1; i < size; ++i) workers_.push_back(std::make_unique<Worker>());
    unsigned started = 1;
    try {
        for (; started < size; ++started) {
            Worker& worker = *workers_[started - 1];
            worker.thread = std::thread(
                [this, index = started, &start = worker.start.value] { work(index, start); });
        }
    } catch (const std::system_error&) {
        stop();
        fail(AWQE_OUT_OF_MEMORY, "the system gives %u threads of %u: use fewer", started, size);
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    stopping_ = true;
    for (const auto& worker : workers_) {
        worker->start.value.fetch_add(1, std::memory_order_release);
        worker->start.value.notify_one();
    }
    for (const auto& worker : workers_) {
        if (worker->thread.joinable()) worker->thread.join();
    }
}

void ThreadPool::run_erased(unsigned members, Call call, const void* context) {
    call_ = call;
    context_ = context;
    members_ = members;
    begin_share();
    unfinished_.value.store(members - 1, std::memory_order_relaxed);
    for (unsigned i = 1; i < members; ++i) {
        Signal& start = workers_[i - 1]->start;
        start.value.fetch_add(1, std::memory_order_release);
        start.value.notify_one();
    }
    const OnFastCores on_fast_cores(cpus_);
    Team team(*this, 0);
    call(context, team);
    for (;;) {
        const uint32_t left = unfinished_.value.load(std::memory_order_acquire);
        if (left == 0) break;
        wait_while(unfinished_.value, left);
    }
}

// Nothing is handed out yet.
void ThreadPool::begin_share() {
    for (unsigned i = 0; i < members_; ++i) cursors_[i].value.store(0, std::memory_order_relaxed);
}

void ThreadPool::work(unsigned index, const std::atomic<uint32_t>& start) {
    if (cpus_.differ) pthread_setaffinity_np(pthread_self(), sizeof(cpus_.set), &cpus_.set);
    for (uint32_t seen = 0;; ++seen) {
        wait_while(start, seen);
        if (stopping_) return;
        Team team(*this, index);
        call_(context_, team);
        if (unfinished_.value.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            unfinished_.value.notify_one();
        }
    }
}

// Returns when `word` no longer holds `value`, seeing everything that was written before it
// changed.
void ThreadPool::wait_while(const std::atomic<uint32_t>& word, uint32_t value) const {
    for (int i = 0; i < spins_; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        relax();
    }
    while (word.load(std::memory_order_acquire) == value) {
        word.wait(value, std::memory_order_acquire);
    }
}

bool Team::take(unsigned owner, size_t grains, Range* range) {
    const size_t part_begin = grains * owner / size();
    const size_t part_end = grains * (owner + 1) / size();
    const bool own = owner == index_;
    const size_t divisor = own ? kOwnShare : kOthersShare;
    std::atomic<uint64_t>& cursor = pool_.cursors_[owner].value;
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
    const uint32_t phase = pool_.phase_.value.load(std::memory_order_relaxed);
    if (pool_.arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
        pool_.arrived_.value.store(0, std::memory_order_relaxed);
        pool_.begin_share();
        pool_.phase_.value.store(phase + 1, std::memory_order_release);
        pool_.phase_.value.notify_all();
    } else {
        pool_.wait_while(pool_.phase_.value, phase);
    }
}

}  // namespace awqe
