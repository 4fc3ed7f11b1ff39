// What Linux says about CPUs, fed from files of our own: shares of time, fast and slow cores.
#include "native/runtime/cpus.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

// A directory that goes away with the test.
class Directory {
  public:
    Directory() {
        char name[] = "/tmp/awqe_cpus_test_XXXXXX";
        if (mkdtemp(name) == nullptr) fail(__FILE__, __LINE__, "no temporary directory");
        path_ = name;
    }
    ~Directory() { std::filesystem::remove_all(path_); }
    const std::string& path() const { return path_; }
    void write(const std::string& file, const std::string& text) const {
        const std::filesystem::path whole = path_ + "/" + file;
        std::filesystem::create_directories(whole.parent_path());
        std::ofstream(whole) << text;
    }

  private:
    std::string path_;
};

cpu_set_t set_of(std::initializer_list<int> cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu : cpus) CPU_SET(static_cast<size_t>(cpu), &set);
    return set;
}

unsigned quota(const Directory& d) { return cpu_quota(d.path() + "/own", d.path() + "/groups"); }

}  // namespace

TEST(a_share_of_time_is_rounded_up_to_whole_cpus) {
    const Directory d;
    d.write("own", "0::/\n");
    CHECK_EQUAL(quota(d), 0u);  // no such file
    d.write("groups/cpu.max", "max 100000\n");
    CHECK_EQUAL(quota(d), 0u);
    d.write("groups/cpu.max", "200000 100000\n");
    CHECK_EQUAL(quota(d), 2u);
    d.write("groups/cpu.max", "150000 100000\n");
    CHECK_EQUAL(quota(d), 2u);
    d.write("groups/cpu.max", "1000 100000\n");
    CHECK_EQUAL(quota(d), 1u);
    d.write("groups/cpu.max", "nonsense");
    CHECK_EQUAL(quota(d), 0u);
}

TEST(the_smallest_limit_above_the_group_counts) {
    const Directory d;
    d.write("own", "12:cpu:/old\n0::/box/service\n");
    d.write("groups/box/service/cpu.max", "max 100000\n");
    CHECK_EQUAL(quota(d), 0u);
    d.write("groups/box/cpu.max", "300000 100000\n");
    CHECK_EQUAL(quota(d), 3u);
    d.write("groups/box/service/cpu.max", "500000 100000\n");
    CHECK_EQUAL(quota(d), 3u);
    d.write("groups/cpu.max", "200000 100000\n");
    CHECK_EQUAL(quota(d), 2u);
    d.write("own", "12:cpu:/box/service\n");  // version 1 alone
    CHECK_EQUAL(quota(d), 0u);
}

TEST(slow_cores_are_left_out) {
    const Directory d;
    for (int cpu = 0; cpu < 8; ++cpu) {
        d.write("cpu" + std::to_string(cpu) + "/cpu_capacity", cpu < 4   ? "446\n"
                                                               : cpu < 7 ? "900\n"
                                                                         : "1024\n");
    }
    const FastCpus all = fast_cpus_of(set_of({0, 1, 2, 3, 4, 5, 6, 7}), d.path());
    CHECK(all.differ);
    CHECK_EQUAL(all.count, 4u);
    const cpu_set_t expected = set_of({4, 5, 6, 7});
    CHECK(CPU_EQUAL(&all.set, &expected));
    // Within what the process may use: of slow cores alone, all.
    const FastCpus slow = fast_cpus_of(set_of({1, 2}), d.path());
    CHECK(!slow.differ);
    CHECK_EQUAL(slow.count, 2u);
    const FastCpus mixed = fast_cpus_of(set_of({0, 7}), d.path());
    CHECK(mixed.differ);
    CHECK_EQUAL(mixed.count, 1u);
}

TEST(clocks_serve_where_capacities_are_missing) {
    const Directory d;
    d.write("cpu0/cpufreq/cpuinfo_max_freq", "1000000\n");
    d.write("cpu1/cpufreq/cpuinfo_max_freq", "2400000\n");
    const FastCpus both = fast_cpus_of(set_of({0, 1}), d.path());
    CHECK(both.differ);
    CHECK_EQUAL(both.count, 1u);
    CHECK(CPU_ISSET(1, &both.set));
}

TEST(equal_or_unknown_cores_are_all_fast) {
    const Directory d;
    CHECK(!fast_cpus_of(set_of({0, 3}), d.path()).differ);
    d.write("cpu0/cpu_capacity", "1024\n");
    CHECK(!fast_cpus_of(set_of({0, 3}), d.path()).differ);  // the other one says nothing
    d.write("cpu3/cpu_capacity", "1024\n");
    const FastCpus equal = fast_cpus_of(set_of({0, 3}), d.path());
    CHECK(!equal.differ);
    CHECK_EQUAL(equal.count, 2u);
}

// A line of the list: a board's name, the threads that it should get, and "capacity/clock" of each
// core, 0 where the board tells none.
TEST(recorded_boards_get_a_thread_for_each_fast_core) {
    std::ifstream list(AWQE_TEST_DATA "/boards/cores.txt");
    unsigned boards = 0;
    for (std::string line; std::getline(list, line); ++boards) {
        const Directory d;
        std::istringstream words(line);
        std::string name;
        unsigned threads = 0;
        words >> name >> threads;
        cpu_set_t allowed;
        CPU_ZERO(&allowed);
        size_t cpu = 0;
        for (std::string core; words >> core; ++cpu) {
            const size_t slash = core.find('/');
            const std::string directory = "cpu" + std::to_string(cpu);
            const std::string capacity = core.substr(0, slash), clock = core.substr(slash + 1);
            if (capacity != "0") d.write(directory + "/cpu_capacity", capacity + "\n");
            if (clock != "0") d.write(directory + "/cpufreq/cpuinfo_max_freq", clock + "\n");
            CPU_SET(cpu, &allowed);
        }
        CHECK_EQUAL(fast_cpus_of(allowed, d.path()).count, threads);
    }
    CHECK(boards >= 15);
}

TEST(this_machine_has_a_cpu) {
    CHECK(available_cpus() >= 1);
    CHECK(default_threads() >= 1);
    CHECK(default_threads() <= available_cpus());
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
