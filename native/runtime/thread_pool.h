// Teams of threads that run one function together. The caller is one of its team; the others wait
// for it, first spinning for some microseconds, then asleep, so that an idle pool costs nothing. On
// a machine with fast and slow cores all of them run on the fast ones. Nothing is allocated per
// run. Owns threads and waiting. What is computed never depends on who computes it: share() hands
// out ranges in any order.
//
// Several callers may run at once. A team sits down when the CPUs that other teams use leave it
// room, in the order of asking: so two small teams work side by side, and two large ones take
// turns instead of the cores from each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "native/runtime/per_process.h"

namespace awqe {

class Team;

class ThreadPool {
    using Call = void (*)(const void* context, Team& team);
    struct Worker;
    struct Run;
    class Crew;

  public:
    ThreadPool();
    // With threads for teams of up to `size` members. Throws as reserve() does.
    explicit ThreadPool(unsigned size);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Starts the threads of a team of up to `members`, >= 1, the caller included. Throws Failure
    // with AWQE_OUT_OF_MEMORY if the system refuses one. Safe from any thread.
    void reserve(unsigned members);

    // Room for a team of `members`, >= 1, until the end of this object: for a caller that needs
    // something else for as long. The constructor waits for others to make room, and starts threads
    // that nobody has reserved or that a fork has left behind.
    class Turn {
      public:
        Turn(ThreadPool& pool, unsigned members);
        ~Turn();
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

        // Calls body(team) on every member and returns when all calls have. `body` must not throw.
        template <class Body>
        void run(const Body& body) {
            run_erased(
                [](const void* context, Team& team) { (*static_cast<const Body*>(context))(team); },
                &body);
        }

      private:
        void run_erased(Call call, const void* context);

        Crew& crew_;
        Run& run_;
    };

    // A turn of one run. Safe from any thread.
    template <class Body>
    void run(unsigned members, const Body& body) {
        Turn(*this, members).run(body);
    }

  private:
    friend class Team;

    Crew& crew();

    PerProcess<Crew> crew_;
};

// One thread's place in a run.
class Team {
  public:
    unsigned index() const { return index_; }  // 0 is the caller
    unsigned size() const { return size_; }

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
    Team(ThreadPool::Run& run, unsigned index, unsigned size)
        : run_(run), index_(index), size_(size) {}

    // Grains of the current share().
    struct Range {
        size_t begin;
        size_t end;
    };
    // Takes grains of a member's part: the owner from its front, others from its back. False if
    // none are left.
    bool take(unsigned owner, size_t grains, Range* range);
    void barrier();

    ThreadPool::Run& run_;
    unsigned index_;
    unsigned size_;
};

}  // namespace awqe
