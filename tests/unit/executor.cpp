// Executors: every task runs once, tasks that run at once have different slots, and exceptions reach the caller.
#include <alibi/executor.hpp>
#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <set>
#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "common.hpp"

namespace {

using alibi::Executor;
using alibi::Task;
using test::Index;

// One thread for each task: the simplest callable.
void on_threads(Index count, Task task) {
  std::vector<std::jthread> threads;
  for (Index i = 0; i < count; i++) threads.emplace_back([task, i] { task(i); });
}

// Runs consecutive tasks one after another on fewer threads than tasks, as an OpenMP loop with a static schedule does.
void in_runs(Index count, Task task) {
  const Index half = count / 2;
  const std::jthread other([=] {
    for (Index i = half; i < count; i++) task(i);
  });
  for (Index i = 0; i < half; i++) task(i);
}

void backwards(Index count, Task task) {
  for (Index i = count; i-- > 0;) task(i);
}

// Checks that for_each calls every index once, and that two overlapping calls never share a slot.
void expect_every_index_once(const Executor& executor) {
  for (const std::size_t count : {0u, 1u, 2u, 3u, 7u, 1000u}) {
    std::vector<std::atomic<int>> calls(count), busy(std::size_t(executor.max_concurrency()));
    std::atomic<bool> alone = true;
    executor.for_each(Index(count), [&](Index i, int slot) {
      if (busy[std::size_t(slot)]++ != 0) alone = false;
      calls[std::size_t(i)]++;
      busy[std::size_t(slot)]--;
    });
    EXPECT_TRUE(alone) << "two calls at once shared a slot, of " << count;
    for (const auto& n : calls) EXPECT_EQ(n, 1) << count;
  }
}

TEST(Executor, EveryIndexOnce) {
  Eigen::ThreadPool pool(3), single(1);
  expect_every_index_once(Executor());
  expect_every_index_once(Executor(pool));
  expect_every_index_once(Executor(single));
  for (const int slots : {1, 2, 7}) {
    expect_every_index_once(Executor(slots, on_threads));
    expect_every_index_once(Executor(slots, in_runs));
    expect_every_index_once(Executor(slots, backwards));
  }
}

TEST(Executor, SlotsAreThoseOfThePool) {
  Eigen::ThreadPool pool(3);
  EXPECT_EQ(Executor().max_concurrency(), 1);
  EXPECT_EQ(Executor(pool).max_concurrency(), 3);
  EXPECT_EQ(Executor(5, on_threads).max_concurrency(), 5);
}

TEST(Executor, SerialStaysOnTheCallingThreadInOrder) {
  std::vector<Index> order;
  const auto caller = std::this_thread::get_id();
  Executor().for_each(5, [&](Index i, int slot) {
    order.push_back(i);
    EXPECT_EQ(slot, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
  EXPECT_EQ(order, (std::vector<Index>{0, 1, 2, 3, 4}));
}

// A thread of the pool must not wait for the others. All of them may be waiting, for ever.
TEST(Executor, FromInsideThePool) {
  Eigen::ThreadPool pool(2);
  Eigen::Barrier done(4);
  std::atomic<int> calls = 0;
  for (int job = 0; job < 4; job++)
    pool.Schedule([&] {
      Executor(pool).for_each(100, [&](Index, int) { calls++; });
      done.Notify();
    });
  done.Wait();
  EXPECT_EQ(calls, 400);
}

TEST(Executor, NeverAsksForMoreThanItsSlots) {
  Index most = 0;
  const Executor executor(4, [&](Index count, Task task) {
    most = std::max(most, count);
    backwards(count, task);
  });
  executor.for_each(3, [](Index, int) {});
  EXPECT_EQ(most, 3);
  executor.for_each(100, [](Index, int) {});
  EXPECT_EQ(most, 4);
}

void expect_exception_passes(const Executor& executor) {
  std::atomic<int> calls = 0;
  std::string message;
  try {
    executor.for_each(100'000, [&](Index i, int) {
      calls++;
      if (i == 5) throw std::logic_error("task 5");
    });
  } catch (const std::logic_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message, "task 5");
  EXPECT_LT(calls, 100'000) << "the others stop early";
  expect_every_index_once(executor);
}

TEST(Executor, ExceptionReachesTheCaller) {
  Eigen::ThreadPool pool(3);
  expect_exception_passes(Executor());
  expect_exception_passes(Executor(pool));
  expect_exception_passes(Executor(3, on_threads));
  expect_exception_passes(Executor(3, backwards));
}

template <class Error, class Call>
std::string message(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Executor, AnExecutorThatReturnsEarlyIsDetected) {
  const Executor lazy(2, [](Index, Task) {});
  EXPECT_EQ(message<std::runtime_error>([&] { lazy.for_each(2, [](Index, int) {}); }),
            "alibi: the executor's run(count, task) returned before every task had been called");
}

// Tasks take indices from a shared counter, so one call of a task does all the work.
TEST(Executor, AnExecutorThatRunsOneTaskDoesAllTheWork) {
  const Executor first_only(3, [](Index, Task task) { task(0); });
  expect_every_index_once(first_only);
}

// A pool that takes some jobs and refuses others by throwing, as if out of memory. Jobs start late, so an executor that
// does not wait for them no longer exists by then.
class RefusingPool {
 public:
  RefusingPool(int accepted_first, int refused) : accepted_first_(accepted_first), refused_(refused) {}
  // NOLINTBEGIN(readability-identifier-naming): Eigen's names
  int NumThreads() const { return 4; }
  int CurrentThreadId() const { return -1; }
  void Schedule(std::function<void()> job) {
    // NOLINTEND(readability-identifier-naming)
    const int number = calls_++ % (NumThreads() - 1);
    if (accepted_first_ <= number && number < accepted_first_ + refused_) throw std::bad_alloc();
    threads_.emplace_back([job = std::move(job)] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      job();
    });
  }

 private:
  int accepted_first_, refused_, calls_ = 0;
  std::vector<std::jthread> threads_;
};

TEST(Executor, APoolThatRefusesAJob) {
  RefusingPool second(1, 1), first(0, 1), last_two(1, 2), all(0, 3);
  for (RefusingPool* pool : {&second, &first, &last_two, &all}) {
    const Executor executor(*pool);
    for (int repetition = 0; repetition < 3; repetition++) {
      std::vector<std::atomic<int>> calls(100);
      executor.for_each(100, [&](Index i, int) { calls[std::size_t(i)]++; });
      for (const auto& n : calls) EXPECT_EQ(n, 1);
    }
  }
}

TEST(Executor, SlotsBelowOne) {
  for (const int slots : {0, -3})
    EXPECT_EQ(message<std::invalid_argument>([&] { Executor(slots, on_threads); }),
              "alibi: the executor's slots is " + std::to_string(slots) + "; expected at least 1");
}

}  // namespace
