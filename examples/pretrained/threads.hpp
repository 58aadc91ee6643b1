// The threads of a run, shared by attention and everything else through alibi::Executor.
//
// Reading one token is some forty parallel sections of 10 to 100 microseconds each. A thread that sleeps takes longer
// than that to wake, so:
//   - A worker without work polls for a short time before it sleeps.
//   - The calling thread works too, and takes over the tasks of workers that have not started. It waits only for tasks
//     that are running, so that a busy machine does not make two threads slower than one.
#pragma once

#include <algorithm>
#include <alibi/executor.hpp>
#include <atomic>
#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "numbers.hpp"

namespace pretrained {

class Threads {
 public:
  /// The calling thread and count - 1 workers. Throws std::system_error where the system has no more threads.
  explicit Threads(int count) : Threads() {
    if (count > 1) executor_ = alibi::Executor(count, [this](Index tasks, alibi::Task task) { run(tasks, task); });
    for (int i = 1; i < count; i++) workers_.emplace_back([this] { work(); });
  }
  ~Threads() {
    stop_ = true;
    state_ += kRound;
    state_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  const alibi::Executor& executor() const { return executor_; }
  int count() const { return executor_.max_concurrency(); }

  /// Calls body(begin, end, slot) for pieces of [0, rows), at once on several threads. No two calls that run at once
  /// have the same slot, which is below count().
  template <class Body>
  void for_rows(Index rows, const Body& body) const {
    constexpr Index kPiece = 16;
    executor_.for_each((rows + kPiece - 1) / kPiece,
                       [&](Index i, int slot) { body(i * kPiece, std::min(rows, (i + 1) * kPiece), slot); });
  }

 private:
  static constexpr std::uint64_t kRound = std::uint64_t(1) << 16, kTasks = kRound - 1;
  static constexpr int kPolls = 2000;  // 20 to 100 microseconds

  Threads() = default;

  /// Calls task(0), …, task(count - 1). A call from inside of a task, or during that of another thread, is serial.
  void run(Index count, alibi::Task task) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      for (Index i = 0; i < count; i++) task(i);
      return;
    }
    task_ = task;
    running_.store(std::uint32_t(count - 1), std::memory_order_relaxed);
    state_.store((state_.load(std::memory_order_relaxed) & ~kTasks) + kRound + std::uint64_t(count - 1),
                 std::memory_order_release);
    state_.notify_all();
    task(0);
    while (run_one()) {
    }
    wait_while(running_, [](std::uint32_t running) { return running != 0; });
    busy_.clear(std::memory_order_release);
  }

  /// Takes one of the tasks that nobody has started, and runs it; whether there was one.
  bool run_one() {
    std::uint64_t state = state_.load(std::memory_order_acquire);
    while ((state & kTasks) != 0) {
      if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acquire)) continue;
      (*task_)(Index(state & kTasks));
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
      return true;
    }
    return false;
  }

  void work() {
    while (!stop_) {
      if (run_one()) continue;
      wait_while(state_, [this](std::uint64_t state) { return (state & kTasks) == 0 && !stop_; });
    }
  }

  /// Polls, then sleeps.
  template <class T, class Holds>
  static void wait_while(const std::atomic<T>& value, const Holds& holds) {
    T now = value.load(std::memory_order_acquire);
    for (int i = 0; i < kPolls && holds(now); i++) {
      pause();
      now = value.load(std::memory_order_acquire);
    }
    while (holds(now)) {
      value.wait(now, std::memory_order_acquire);
      now = value.load(std::memory_order_acquire);
    }
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alibi::Executor executor_;
  std::optional<alibi::Task> task_;  // of the present call
  // Rounds so far in the upper 48 bits, so that no value comes twice; tasks that have not started in the lower 16.
  alignas(64) std::atomic<std::uint64_t> state_ = 0;
  alignas(64) std::atomic<std::uint32_t> running_ = 0;  // tasks that have not returned, task(0) left out
  std::atomic<bool> stop_ = false;
  std::atomic_flag busy_;
  std::vector<std::thread> workers_;
};

}  // namespace pretrained
