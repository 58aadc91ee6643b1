// Runs the tasks of a call. The default is serial: no thread is created and no global setting is touched.
//
// clang-format off
//   alibi::Executor()            the calling thread
//   alibi::Executor(pool)        an Eigen::ThreadPool, or a pool with its three functions; it must outlive the executor
//   alibi::Executor(slots, run)  anything else: run(count, task) calls task(0), …, task(count - 1) on any threads, and
//                                returns when all calls have returned. OpenMP:
//
//     alibi::Executor(omp_get_max_threads(), [](alibi::Index count, auto task) {
//       #pragma omp parallel for
//       for (alibi::Index i = 0; i < count; i++) task(i);
//     });
// clang-format on
//
// Results never depend on the executor: no two tasks that run at once write the same numbers (statistics are merged
// atomically), and how work is cut into tasks depends on the shapes alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <exception>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

/// A reference to a callable void(Index), the argument `task` of an executor's `run`. It holds two pointers and is
/// cheap to copy.
class Task {
 public:
  /// A reference to `body`, which must outlive it.
  template <class Body>
    requires(!std::same_as<std::remove_cvref_t<Body>, Task>)
  explicit Task(Body& body)
      : body_(std::addressof(body)), call_([](void* b, Index i) { (*static_cast<Body*>(b))(i); }) {}
  /// Calls body(i).
  void operator()(Index i) const { call_(body_, i); }

 private:
  void* body_;
  void (*call_)(void*, Index);
};

/// A class with the three functions of Eigen::ThreadPool that an Executor uses.
template <class Pool>
concept ThreadPool = requires(Pool& pool, std::function<void()> job) {
  { pool.NumThreads() } -> std::convertible_to<int>;
  { pool.CurrentThreadId() } -> std::convertible_to<int>;
  pool.Schedule(std::move(job));
};

/// Runs the tasks of a call: on the calling thread, on the threads of a pool, or by a function of the user.
class Executor {
 public:
  /// Runs on the calling thread.
  Executor() = default;

  /// Runs on the calling thread and on all but one of the pool's threads, so that a pool of n threads keeps n cores
  /// busy. If the calling thread belongs to the pool, everything runs on that thread, because waiting for the others
  /// there could block for ever.
  template <ThreadPool Pool>
  explicit Executor(Pool& pool)
      : slots_(std::max(1, int(pool.NumThreads()))), run_([&pool](Index count, Task task) {
          // All tasks take indices from one counter, so that a task which a full or stopped pool refuses is not missed.
          const Index others = pool.CurrentThreadId() == -1 ? count - 1 : 0;
          std::latch running(others);
          for (Index i = 1; i <= others; i++) {
            detail::try_or(
                [&] {
                  pool.Schedule([&running, task, i] {
                    task(i);
                    running.count_down();
                  });
                },
                [&] { running.count_down(); });
          }
          task(0);
          running.wait();
        }) {}

  /// Runs by `run(count, task)`, which calls task(0), …, task(count - 1) on any threads and returns when all calls have
  /// returned. The count is never above `slots`. Throws std::invalid_argument for slots < 1.
  template <std::invocable<Index, Task> Run>
  Executor(int slots, Run run) : slots_(slots), run_(std::move(run)) {
    detail::require(slots >= 1, "the executor's slots is ", slots, "; expected at least 1");
  }

  /// The largest number of tasks that run at once.
  int max_concurrency() const { return slots_; }

  /// Calls body(index, slot) for every index in [0, count), started in rising order. The slot is the index of a task
  /// that runs at once, in [0, max_concurrency()): no two calls that run at once have the same slot. If a body throws,
  /// the first exception is thrown again here once all slots have stopped; indices not yet started are skipped. Throws
  /// std::runtime_error if `run` returned without calling all its tasks. The behaviour is undefined if `run` returns
  /// while a task still runs.
  template <class Body>
  void for_each(Index count, Body&& body) const;

 private:
  int slots_ = 1;
  std::function<void(Index, Task)> run_;
};

template <class Body>
void Executor::for_each(Index count, Body&& body) const {
  const Index slots = std::min<Index>(slots_, count);
  if (slots <= 1 || !run_) {
    for (Index i = 0; i < count; i++) body(i, 0);
    return;
  }
  std::atomic<Index> next = 0, done = 0;
  std::exception_ptr error;
  std::mutex error_mutex;
  // Every slot takes the next index from the shared counter until none is left.
  auto slot = [&](Index s) {
    detail::try_or(
        [&] {
          for (Index i = next++; i < count; i = next++) {
            body(i, int(s));
            done++;
          }
        },
        [&] {
          next = count;
          const std::lock_guard lock(error_mutex);
          if (!error) error = std::current_exception();
        });
  };
  run_(slots, Task(slot));
  if (error) std::rethrow_exception(error);
  if (done != count)
    detail::fail<std::runtime_error>({"the executor's run(count, task) returned before every task had been called"});
}

}  // namespace alibi::inline ALIBI_ABI
