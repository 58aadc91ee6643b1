// The threads of a run: one pool, shared by attention and everything else through alibi::Executor.
#pragma once

#include <algorithm>
#include <alibi/executor.hpp>
#include <memory>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "numbers.hpp"

namespace pretrained {

class Threads {
 public:
  explicit Threads(int count)
      : pool_(count > 1 ? std::make_unique<Eigen::ThreadPool>(count) : nullptr),
        executor_(pool_ ? alibi::Executor(*pool_) : alibi::Executor()) {}

  const alibi::Executor& executor() const { return executor_; }
  int count() const { return executor_.max_concurrency(); }

  /// Calls body(begin, end) for pieces of [0, rows), at once on several threads.
  template <class Body>
  void for_rows(Index rows, const Body& body) const {
    constexpr Index kPiece = 16;
    executor_.for_each((rows + kPiece - 1) / kPiece,
                       [&](Index i, int) { body(i * kPiece, std::min(rows, (i + 1) * kPiece)); });
  }

 private:
  std::unique_ptr<Eigen::ThreadPool> pool_;
  alibi::Executor executor_;
};

}  // namespace pretrained
