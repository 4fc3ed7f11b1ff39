// A team of threads that runs one function together. The caller is one of the team; the others wait
// for it, first spinning for some microseconds, then asleep, so that an idle pool costs nothing. On
// a machine with fast and slow cores all of them run on the fast ones. Nothing is allocated per
// run. Owns threads and waiting. What is computed never depends on who computes it: share() hands
// out ranges in any order.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "native/runtime/cpus.h"

namespace awqe {

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
    // How many grains of a member's part have been handed out, on its own cache line: in the low
    // half those from its front, in the high half those from its back.
    struct alignas(64) Cursor {
        std::atomic<uint64_t> value{0};
    };

    void run_erased(unsigned members, Call call, const void* context);
    void work(unsigned index, const std::atomic<uint32_t>& start);
    void stop();
    void wait_while(const std::atomic<uint32_t>& word, uint32_t value) const;

    void begin_share();

    const FastCpus cpus_;
    std::vector<std::unique_ptr<Worker>> workers_;
    int spins_;  // looks at a word before sleeping
    bool stopping_ = false;

    // Of the current run.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    unsigned members_ = 1;
    Signal unfinished_;            // members other than the caller that are still in the body
    Signal phase_;                 // barriers passed
    Signal arrived_;               // members waiting at the barrier
    std::vector<Cursor> cursors_;  // [size]: of the current share()
};

// One thread's place in a run.
class Team {
  public:
    unsigned index() const { return index_; }  // 0 is the caller
    unsigned size() const { return pool_.members_; }

    // Divides the items [0, total) over the team: body(begin, end) is called for ranges that begin
    // at multiples of `grain`. Every member has a part of its own, neighbouring items, so that it
    // reads one stream of memory; whoever is through with it helps the others. Ranges shrink
    // towards the end of a part, so that all finish together. Every member must call this, and none
    // returns before all items are done. total < 2^32 * grain.
    template <class Body>
    void share(size_t total, size_t grain, Body&& body) {
        if (size() == 1) {
            if (total > 0) body(size_t{0}, total);
            return;
        }
        const size_t grains = (total + grain - 1) / grain;
        for (unsigned i = 0; i < size(); ++i) {
            Range range;
            while (take((index_ + i) % size(), grains, &range)) {
                const size_t end = range.end * grain;
                body(range.begin * grain, end < total ? end : total);
            }
        }
        barrier();
    }

  private:
    friend class ThreadPool;
    Team(ThreadPool& pool, unsigned index) : pool_(pool), index_(index) {}

    // Grains of the current share().
    struct Range {
        size_t begin;
        size_t end;
    };
    // Takes grains of a member's part: the owner from its front, others from its back. False if
    // none are left.
    bool take(unsigned owner, size_t grains, Range* range);
    void barrier();

    ThreadPool& pool_;
    unsigned index_;
};

}  // namespace awqe
