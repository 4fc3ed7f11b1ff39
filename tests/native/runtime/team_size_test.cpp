// The size of the decoding team against machines that are made up: free, crowded, and changing.
#include "native/runtime/team_size.h"

#include <array>

#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

struct Machine {
    std::array<double, 5> seconds;  // per token, by members
    long interruptions;             // per token
};

constexpr Machine kFree = {{0, 0.04, 0.02, 0.0135, 0.01}, 0};
// Every member beyond the first makes it worse.
constexpr Machine kCrowded = {{0, 0.05, 0.08, 0.1, 0.12}, 5};
// Other programs interrupt, and four threads are best nonetheless.
constexpr Machine kNoisy = {{0, 0.09, 0.05, 0.04, 0.03}, 3};

// Tokens with each number of members.
std::array<int, 5> decode(TeamSize& team, const Machine& machine, int tokens) {
    std::array<int, 5> used = {};
    for (int i = 0; i < tokens; ++i) {
        const unsigned members = team.members();
        ++used[members];
        team.record(machine.seconds[members], machine.interruptions);
    }
    return used;
}

}  // namespace

TEST(a_free_machine_gives_all_its_threads_to_every_token) {
    TeamSize team(4);
    CHECK_EQUAL(decode(team, kFree, 1000)[4], 1000);
}

TEST(a_crowded_machine_is_left_alone) {
    TeamSize team(4);
    decode(team, kCrowded, 100);
    // Now and then it looks whether two are better by now.
    CHECK(decode(team, kCrowded, 1000)[1] > 850);
}

TEST(threads_come_back_when_the_machine_is_free_again) {
    TeamSize team(4);
    decode(team, kCrowded, 1000);
    decode(team, kFree, 100);
    CHECK_EQUAL(decode(team, kFree, 100)[4], 100);
}

TEST(interruptions_alone_take_no_threads_away) {
    TeamSize team(4);
    const std::array<int, 5> used = decode(team, kNoisy, 1000);
    CHECK(used[4] > 900);
    CHECK_EQUAL(used[1], 0);
}

TEST(an_odd_number_of_threads_is_reached_again) {
    TeamSize team(3);
    decode(team, kCrowded, 200);
    CHECK(team.members() <= 2);
    decode(team, kFree, 100);
    CHECK_EQUAL(team.members(), 3u);
}

TEST(one_thread_stays_one) {
    TeamSize team(1);
    CHECK_EQUAL(decode(team, kCrowded, 100)[1], 100);
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
