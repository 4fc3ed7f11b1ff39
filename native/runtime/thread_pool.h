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
    // How much of a member's part of the items has been handed out, on its own cache line.
    struct alignas(64) Cursor {
        std::atomic<size_t> value{0};
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
    // reads one stream of memory; whoever is through with it helps the others. Every member must
    // call this, and none returns before all items are done.
    template <class Body>
    void share(size_t total, size_t grain, Body&& body) {
        if (size() == 1) {
            if (total > 0) body(size_t{0}, total);
            return;
        }
        const size_t step = share_step(total, grain);
        for (unsigned i = 0; i < size(); ++i) {
            const unsigned owner = (index_ + i) % size();
            const size_t end = part_begin(owner + 1, total, grain);
            const size_t length = end - part_begin(owner, total, grain);
            std::atomic<size_t>& cursor = pool_.cursors_[owner].value;
            // Looks before it takes: a part that is done is only read, by everybody.
            while (cursor.load(std::memory_order_relaxed) < length) {
                const size_t taken = cursor.fetch_add(step, std::memory_order_relaxed);
                if (taken >= length) break;
                const size_t begin = end - length + taken;
                body(begin, begin + step < end ? begin + step : end);
            }
        }
        barrier();
    }

  private:
    friend class ThreadPool;
    Team(ThreadPool& pool, unsigned index) : pool_(pool), index_(index) {}

    size_t share_step(size_t total, size_t grain) const;
    // The first item of a member's part.
    size_t part_begin(unsigned member, size_t total, size_t grain) const {
        const size_t begin = (total + grain - 1) / grain * member / size() * grain;
        return begin < total ? begin : total;
    }
    void barrier();

    ThreadPool& pool_;
    unsigned index_;
};

}  // namespace awqe
