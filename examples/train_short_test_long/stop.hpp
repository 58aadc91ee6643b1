// Stopping on Ctrl-C or SIGTERM: the handler only notes the wish, and whoever works asks for it where stopping is
// clean.
#pragma once

#include <csignal>

namespace experiment {

inline volatile std::sig_atomic_t stop_signal = 0;

inline bool stop_requested() { return stop_signal != 0; }

/// A second signal ends the program at once. A file that grows beyond the limit of the shell is to be an error like a
/// full disk, not the program's death.
inline void catch_signals() {
  const auto note = [](int signal) {
    stop_signal = 1;
    std::signal(signal, SIG_DFL);
  };
  std::signal(SIGINT, note);
  std::signal(SIGTERM, note);
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace experiment
