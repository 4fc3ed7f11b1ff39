// Trials of half or twice as many members; see team_size.h.
#include "native/runtime/team_size.h"

#include <algorithm>

namespace awqe {
namespace {

// A window is long enough to see what the scheduler does, whose time slices are some milliseconds.
constexpr unsigned kWindowTokens = 8;
constexpr double kWindowSeconds = 0.05;

// On a machine with room the caller loses its core less often than this; on one without, several
// times as often.
constexpr double kSecondsPerInterruption = 0.025;

// A different number of members must be clearly better.
constexpr double kGain = 0.9;
constexpr unsigned kMostPatience = 32;

}  // namespace

void TeamSize::settle(unsigned size) {
    settled_ = current_ = size;
    waited_ = 0;
}

void TeamSize::record(double seconds, long interruptions) {
    if (full_ == 1) return;
    window_.tokens += 1;
    window_.seconds += seconds;
    window_.interruptions += interruptions;
    if (window_.tokens < kWindowTokens || window_.seconds < kWindowSeconds) return;
    const Window seen = window_;
    window_ = {};
    const double time = seen.seconds / seen.tokens;
    if (current_ != settled_) {  // a trial ends
        const bool better = time < settled_time_ * kGain;
        up_next_ = better ? current_ > settled_ : current_ < settled_;
        patience_ = better ? 1 : std::min(patience_ * 2, kMostPatience);
        settle(better ? current_ : settled_);
        return;
    }
    settled_time_ = time;
    waited_ += 1;
    const bool crowded =
        static_cast<double>(seen.interruptions) * kSecondsPerInterruption > seen.seconds;
    if (!crowded) {
        // A calm machine may have room for all again, whatever the last trial said.
        up_next_ = false;
        current_ = std::min(settled_ * 2, full_);
    } else if (waited_ >= patience_) {
        // Down first; then, trial by trial, either way.
        const bool up = (up_next_ || settled_ == 1) && settled_ < full_;
        current_ = up ? std::min(settled_ * 2, full_) : std::max(settled_ / 2, 1u);
    }
}

}  // namespace awqe
