// Every item is done once, waiting works, and an idle pool sleeps.
#include "native/runtime/thread_pool.h"

#include <ctime>
#include <thread>

#include "tests/native/support/check.h"

namespace awqe::test {

TEST(share_hands_out_every_item_once) {
    for (unsigned threads : {1u, 2u, 3u, 4u, 7u}) {
        ThreadPool pool(threads);
        CHECK_EQUAL(pool.size(), threads);
        for (size_t total : {0u, 1u, 2u, 3u, 4u, 7u, 27u, 28u, 29u, 1000u}) {
            for (size_t grain : {1u, 4u, 16u}) {
                std::vector<std::atomic<int>> done(total);
                std::atomic<bool> aligned{true};
                pool.run(threads, [&](Team& team) {
                    team.share(total, grain, [&](size_t begin, size_t end) {
                        if (begin % grain != 0 || begin >= end || end > total) aligned = false;
                        for (size_t i = begin; i < end; ++i) ++done[i];
                    });
                });
                CHECK(aligned);
                for (const auto& count : done) CHECK_EQUAL(count.load(), 1);
            }
        }
    }
}

TEST(what_one_share_writes_the_next_one_reads) {
    for (unsigned threads : {1u, 2u, 3u, 4u, 7u}) {
        ThreadPool pool(threads);
        std::vector<uint64_t> a(61, 1), b(61);
        pool.run(threads, [&](Team& team) {
            for (int round = 0; round < 50; ++round) {
                // Plain memory: a missing barrier is a wrong sum, and a report of the thread
                // sanitizer.
                team.share(b.size(), 1, [&](size_t begin, size_t end) {
                    for (size_t i = begin; i < end; ++i) b[i] = a[(i + 1) % 61] + a[(i + 30) % 61];
                });
                team.share(a.size(), 1, [&](size_t begin, size_t end) {
                    for (size_t i = begin; i < end; ++i) a[i] = b[(i + 7) % 61] % 1000003;
                });
            }
        });
        std::vector<uint64_t> expected(61, 1), other(61);
        for (int round = 0; round < 50; ++round) {
            for (size_t i = 0; i < 61; ++i)
                other[i] = expected[(i + 1) % 61] + expected[(i + 30) % 61];
            for (size_t i = 0; i < 61; ++i) expected[i] = other[(i + 7) % 61] % 1000003;
        }
        CHECK(a == expected);
    }
}

TEST(a_run_may_use_part_of_the_pool) {
    ThreadPool pool(7);
    for (unsigned members : {1u, 7u, 2u, 1u, 5u, 3u, 7u, 4u}) {
        std::vector<std::atomic<int>> calls(7);
        pool.run(members, [&](Team& team) {
            ++calls[team.index()];
            if (team.size() != members) calls[team.index()] += 100;
            team.share(10, 1, [](size_t, size_t) {});
        });
        for (unsigned i = 0; i < 7; ++i) CHECK_EQUAL(calls[i].load(), i < members ? 1 : 0);
    }
}

TEST(a_member_may_finish_long_before_another) {
    ThreadPool pool(3);
    for (unsigned slow = 0; slow < 3; ++slow) {
        std::atomic<int> finished{0};
        pool.run(3, [&](Team& team) {
            if (team.index() == slow) std::this_thread::sleep_for(std::chrono::milliseconds(20));
            ++finished;
        });
        CHECK_EQUAL(finished.load(), 3);
    }
}

TEST(an_idle_pool_uses_no_cpu) {
    ThreadPool pool(4);
    pool.run(4, [](Team& team) { team.share(100, 1, [](size_t, size_t) {}); });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // past the spinning
    timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                        static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
    CHECK(used < 0.1);  // one spinning thread would use 0.3, three 0.9
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
