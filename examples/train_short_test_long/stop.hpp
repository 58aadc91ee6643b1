// Stopping on Ctrl-C or SIGTERM: the handler only notes the wish, and whoever works asks for it where stopping is
// clean.
#pragma once

#include <atomic>
#include <csignal>

namespace experiment {

/// Read by all threads; a handler may write nothing that takes a lock.
inline std::atomic<bool> stop_wished = false;
static_assert(std::atomic<bool>::is_always_lock_free);

inline bool stop_requested() { return stop_wished; }

/// A second signal ends the program at once. A file that grows beyond the limit of the shell is to be an error like a
/// full disk, not the program's death.
inline void catch_signals() {
  const auto note = [](int signal) {
    stop_wished = true;
    std::signal(signal, SIG_DFL);
  };
  std::signal(SIGINT, note);
  std::signal(SIGTERM, note);
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace experiment
