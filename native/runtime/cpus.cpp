// Reads /sys and /proc; see cpus.h. A file that is missing or says nothing sensible means no limit
// and equal CPUs.
#include "native/runtime/cpus.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <thread>

#include "native/failure/failure.h"

namespace awqe {
namespace {

constexpr const char* kOwnGroup = "/proc/self/cgroup";
constexpr const char* kGroups = "/sys/fs/cgroup";
constexpr const char* kCpus = "/sys/devices/system/cpu";

cpu_set_t allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return set;
    // More CPUs than a cpu_set_t has room for, or no such call.
    const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, 1024u);
    for (unsigned i = 0; i < count; ++i) CPU_SET(i, &set);
    return set;
}

// The beginning of a file as a string, empty if it cannot be read. Not a stream: those swallow what
// goes wrong.
std::string beginning_of(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return {};
    std::array<char, 4096> bytes;
    const ssize_t count = read(file, bytes.data(), bytes.size());
    close(file);
    return std::string(bytes.data(), count > 0 ? static_cast<size_t>(count) : 0);
}

// The number in a file, or 0.
uint64_t number_in(const std::string& path) {
    return std::strtoull(beginning_of(path).c_str(), nullptr, 10);
}

// The limit that one group states: "150000 100000" is one and a half CPUs, "max 100000" none.
unsigned quota_of_group(const std::string& directory) {
    const std::string text = beginning_of(directory + "/cpu.max");
    char* rest = nullptr;
    const uint64_t quota = std::strtoull(text.c_str(), &rest, 10);
    const uint64_t period = std::strtoull(rest, nullptr, 10);
    if (quota == 0 || period == 0) return 0;
    return static_cast<unsigned>(std::min<uint64_t>((quota - 1) / period + 1, 1u << 20));
}

}  // namespace

unsigned cpu_quota(const std::string& proc, const std::string& cgroups) {
    // Version 2 has one line, which begins with "0::"; those of version 1 begin with other numbers.
    std::string groups = beginning_of(proc);
    groups.insert(0, 1, '\n');
    const size_t line = groups.find("\n0::");
    if (line == std::string::npos) return 0;
    const size_t begin = line + 4;
    std::string group = groups.substr(begin, groups.find('\n', begin) - begin);
    unsigned smallest = 0;
    while (!group.empty()) {
        const unsigned quota = quota_of_group(cgroups + group);
        if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
        if (group == "/") break;
        const size_t parent = group.rfind('/');
        group = parent == 0 || parent == std::string::npos ? "/" : group.substr(0, parent);
    }
    return smallest;
}

FastCpus fast_cpus_of(const cpu_set_t& allowed, const std::string& cpus) {
    FastCpus fast = {allowed, static_cast<unsigned>(CPU_COUNT(&allowed)), false};
    std::array<uint64_t, CPU_SETSIZE> speeds = {};
    uint64_t fastest = 0;
    for (size_t i = 0; i < CPU_SETSIZE; ++i) {
        if (!CPU_ISSET(i, &allowed)) continue;
        const std::string directory = cpus + "/cpu" + std::to_string(i);
        // What a core does per second, as the device tree says; where there is none its clock.
        speeds[i] = number_in(directory + "/cpu_capacity");
        if (speeds[i] == 0) speeds[i] = number_in(directory + "/cpufreq/cpuinfo_max_freq");
        if (speeds[i] == 0) return fast;
        fastest = std::max(fastest, speeds[i]);
    }
    for (size_t i = 0; i < CPU_SETSIZE; ++i) {
        if (CPU_ISSET(i, &allowed) && speeds[i] < (fastest + 1) / 2) CPU_CLR(i, &fast.set);
    }
    fast.count = static_cast<unsigned>(CPU_COUNT(&fast.set));
    fast.differ = fast.count < static_cast<unsigned>(CPU_COUNT(&allowed));
    return fast;
}

unsigned available_cpus() {
    const cpu_set_t allowed = allowed_cpus();
    const unsigned count = static_cast<unsigned>(CPU_COUNT(&allowed));
    const unsigned quota = cpu_quota(kOwnGroup, kGroups);
    return quota == 0 ? count : std::min(count, quota);
}

FastCpus fast_cpus() { return fast_cpus_of(allowed_cpus(), kCpus); }

unsigned default_threads() { return std::min(available_cpus(), fast_cpus().count); }

unsigned thread_count(uint32_t asked, const char* name) {
    constexpr uint32_t kMost = 1024;  // catches a negative number that became unsigned
    if (asked > kMost) {
        fail(AWQE_INVALID_ARGUMENT, "%s is %u, allowed are 0 to %u", name, asked, kMost);
    }
    return asked == 0 ? default_threads() : asked;
}

}  // namespace awqe
