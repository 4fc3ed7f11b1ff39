// A team of threads that runs one function together. The caller is one of the team; the others wait
// for it, first spinning for some microseconds, then asleep, so that an idle pool costs nothing.
// Nothing is allocated per run. Owns threads and waiting. What is computed never depends on who
// computes it: share() hands out ranges in any order.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace awqe {

// CPUs that this process may use.
unsigned available_cpus();

class Team;

class ThreadPool {
  public:
    // Starts size - 1 threads; size >= 1. Throws Failure with AWQE_OUT_OF_MEMORY if the system
    // refuses one.
    explicit ThreadPool(unsigned size);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    unsigned size() const { return static_cast<unsigned>(workers_.size()) + 1; }

    // Calls body(team) on `members` threads, 1 <= members <= size(), and returns when all calls
    // have. `body` must not throw. One run at a time.
    template <class Body>
    void run(unsigned members, const Body& body) {
        run_erased(
            members,
            [](const void* context, Team& team) { (*static_cast<const Body*>(context))(team); },
            &body);
    }

  private:
    friend class Team;
    using Call = void (*)(const void* context, Team& team);

    // A word that one thread waits for, on its own cache line.
    struct alignas(64) Signal {
        std::atomic<uint32_t> value{0};
    };
    struct Worker {
        Signal start;  // grows by one per run
        std::thread thread;
    };

    void run_erased(unsigned members, Call call, const void* context);
    void work(unsigned index, const std::atomic<uint32_t>& start);
    void stop();
    void wait_while(const std::atomic<uint32_t>& word, uint32_t value) const;

    std::vector<std::unique_ptr<Worker>> workers_;
    int spins_;  // looks at a word before sleeping
    bool stopping_ = false;

    // Of the current run.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    unsigned members_ = 1;
    Signal unfinished_;  // members other than the caller that are still in the body
    Signal phase_;       // barriers passed
    Signal arrived_;     // members waiting at the barrier
    alignas(64) std::atomic<size_t> next_{0};  // first item that share() has not handed out
};

// One thread's place in a run.
class Team {
  public:
    unsigned index() const { return index_; }  // 0 is the caller
    unsigned size() const { return pool_.members_; }

    // Divides the items [0, total) over the team: body(begin, end) is called for ranges that begin
    // at multiples of `grain`. Every member must call it, and none returns before all items are
    // done.
    template <class Body>
    void share(size_t total, size_t grain, Body&& body) {
        if (size() == 1) {
            if (total > 0) body(size_t{0}, total);
            return;
        }
        const size_t step = share_step(total, grain);
        for (;;) {
            const size_t begin = pool_.next_.fetch_add(step, std::memory_order_relaxed);
            if (begin >= total) break;
            body(begin, begin + step < total ? begin + step : total);
        }
        barrier();
    }

  private:
    friend class ThreadPool;
    Team(ThreadPool& pool, unsigned index) : pool_(pool), index_(index) {}

    size_t share_step(size_t total, size_t grain) const;
    void barrier();

    ThreadPool& pool_;
    unsigned index_;
};

}  // namespace awqe
