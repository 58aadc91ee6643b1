// Stopping on Ctrl-C or SIGTERM. The handler only sets a flag, and the loops check it where they can stop cleanly.
#pragma once

#include <atomic>
#include <csignal>

namespace experiment {

/// Read by all threads. A handler must not write anything that takes a lock.
inline std::atomic<bool> stop_flag = false;
static_assert(std::atomic<bool>::is_always_lock_free);

inline bool stop_requested() { return stop_flag; }

/// A second signal ends the program at once. SIGXFSZ is ignored, so that a file beyond the limit of the shell is an
/// error, like a full disk, and does not end the program.
inline void catch_signals() {
  const auto note = [](int signal) {
    stop_flag = true;
    std::signal(signal, SIG_DFL);
  };
  std::signal(SIGINT, note);
  std::signal(SIGTERM, note);
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace experiment
