// Which CPUs this process may use, how many of them at once, and which are the fast ones of a
// big.LITTLE machine. Reads what Linux says about them; owns no thread.
#pragma once

#include <sched.h>

#include <cstdint>
#include <string>

namespace awqe {

// CPUs that this process may keep busy: those of its affinity mask, or fewer if its control group
// has a smaller share of time. At least 1.
unsigned available_cpus();

// The allowed CPUs that are at least half as fast as the fastest one, and whether that leaves any
// out.
struct FastCpus {
    cpu_set_t set;
    unsigned count;  // of the set; 1 or more
    bool differ;     // some allowed CPU is not in it
};
FastCpus fast_cpus();

// Threads that a session uses unless it is told otherwise: one for each fast CPU, within the share
// of time.
unsigned default_threads();
// As many as somebody asks for, or default_threads() for 0. Throws Failure with
// AWQE_INVALID_ARGUMENT, calling the number `name`.
unsigned thread_count(uint32_t asked, const char* name);

// The parts of the above that a test can feed.

// How many CPUs' time the control group of the process may use: the smallest limit on the way from
// its group to the root, rounded up; 0 means no limit. `proc` and `cgroups` are /proc/self/cgroup
// and /sys/fs/cgroup.
unsigned cpu_quota(const std::string& proc, const std::string& cgroups);
// `cpus` is /sys/devices/system/cpu.
FastCpus fast_cpus_of(const cpu_set_t& allowed, const std::string& cpus);

}  // namespace awqe
