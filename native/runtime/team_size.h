// How many threads decode the next token. All of them on a machine that has room for them; fewer
// while other programs take its cores, since a member that the system has put aside keeps all the
// others waiting, several times per layer. Owns the decision, from times and counts that it is
// told; measures nothing. The number of threads changes no bit of the result.
#pragma once

namespace awqe {

class TeamSize {
  public:
    explicit TeamSize(unsigned full) : full_(full), settled_(full), current_(full) {}

    // Members for the next token, 1 ... full.
    unsigned members() const { return current_; }

    // One token took `seconds` with members(), and the system took the core from the calling thread
    // `interruptions` times.
    void record(double seconds, long interruptions);

  private:
    struct Window {
        unsigned tokens = 0;
        double seconds = 0;
        long interruptions = 0;
    };

    void settle(unsigned size);

    unsigned full_;
    unsigned settled_;  // what is used between trials
    unsigned current_;
    Window window_;
    double settled_time_ = 0;  // seconds per token with settled_ members
    bool up_next_ = false;
    unsigned patience_ = 1;  // windows until the next trial
    unsigned waited_ = 0;    // windows since the last one
};

}  // namespace awqe
