// Executors with several numbers of slots. For each number, one runs the tasks in descending order on one thread, and
// one runs each task on a thread of its own.
#pragma once

#include <alibi/executor.hpp>
#include <thread>
#include <vector>

namespace test {

inline std::vector<alibi::Executor> executors() {
  std::vector<alibi::Executor> all;
  for (const int slots : {1, 2, 3, 7}) {
    all.emplace_back(slots, [](alibi::Index count, alibi::Task task) {
      for (alibi::Index i = count; i-- > 0;) task(i);
    });
    all.emplace_back(slots, [](alibi::Index count, alibi::Task task) {
      std::vector<std::jthread> threads;
      for (alibi::Index i = 0; i < count; i++) threads.emplace_back([=] { task(i); });
    });
  }
  return all;
}

}  // namespace test
