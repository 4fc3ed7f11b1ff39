// Every item is done once, waiting works, an idle pool sleeps, teams run side by side or in turns,
// and a forked child gets threads of its own.
#include "native/runtime/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <ctime>
#include <thread>
#include <vector>

#include "native/runtime/cpus.h"

#include "tests/native/support/check.h"

namespace awqe::test {

TEST(share_hands_out_every_item_once) {
    for (unsigned threads : {1u, 2u, 3u, 4u, 7u}) {
        ThreadPool pool(threads);
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

TEST(many_callers_share_one_pool) {
    ThreadPool pool;
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 6; ++caller) {
        callers.emplace_back([&pool, &wrong, members = caller % 4 + 1] {
            std::vector<int> done(50);
            for (int round = 0; round < 200; ++round) {
                pool.run(members, [&](Team& team) {
                    team.share(done.size(), 1, [&](size_t begin, size_t end) {
                        for (size_t i = begin; i < end; ++i) ++done[i];
                    });
                    team.share(done.size(), 2, [&](size_t begin, size_t end) {
                        for (size_t i = begin; i < end; ++i) done[i] += done[i] == round + 1;
                    });
                    team.share(done.size(), 3, [&](size_t begin, size_t end) {
                        for (size_t i = begin; i < end; ++i) --done[i];
                    });
                });
            }
            for (int count : done) wrong += count != 200;
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK_EQUAL(wrong.load(), 0);
}

TEST(teams_that_fill_the_machine_take_turns) {
    ThreadPool pool;
    const unsigned all = available_cpus();
    std::atomic<int> inside{0}, most{0};
    const auto use = [&] {
        for (int round = 0; round < 5; ++round) {
            pool.run(all, [&](Team& team) {
                if (team.index() != 0) return;
                const int now = ++inside;
                if (now > most) most = now;
                std::this_thread::sleep_for(std::chrono::milliseconds(2));
                --inside;
            });
        }
    };
    std::thread one(use), other(use);
    one.join();
    other.join();
    CHECK_EQUAL(most.load(), 1);
}

// A thread sanitizer ends a child that starts threads.
#if !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_gets_threads_of_its_own) {
    for (unsigned threads : {1u, 2u, 4u}) {
        ThreadPool pool(threads);
        const auto sum_of_indices = [&] {
            std::atomic<unsigned> sum{0};
            pool.run(threads, [&](Team& team) {
                sum += team.index() + 1;
                team.share(10, 1, [](size_t, size_t) {});
            });
            return sum.load();
        };
        const unsigned expected = threads * (threads + 1) / 2;
        CHECK_EQUAL(sum_of_indices(), expected);
        // Also while another thread is in the middle of a run, and of sitting down.
        std::atomic<bool> stop{false};
        std::thread busy([&] {
            while (!stop) sum_of_indices();
        });
        for (int round = 0; round < 20; ++round) {
            const pid_t child = fork();
            if (child == 0) {
                alarm(20);  // a child that hangs ends with a signal
                _exit(sum_of_indices() == expected && sum_of_indices() == expected ? 0 : 1);
            }
            int status = -1;
            CHECK_EQUAL(waitpid(child, &status, 0), child);
            CHECK_EQUAL(status, 0);
        }
        stop = true;
        busy.join();
        CHECK_EQUAL(sum_of_indices(), expected);
    }
}
#endif

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
