// The limits of the machine, measured in the same process as the benchmarks.
#pragma once

#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <alibi/executor.hpp>
#include <alibi/kernel/simd/bf16.hpp>
#include <alibi/kernel/simd/vec.hpp>
#include <array>
#include <chrono>
#include <cstddef>
#include <numeric>
#include <vector>

namespace bench {

using alibi::Index;

/// The seconds of one call.
template <class Call>
double seconds(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The seconds of the fastest of `runs` calls, and the median of `runs` calls after a warm-up call.
template <class Call>
double fastest(int runs, const Call& call) {
  double best = seconds(call);
  for (int run = 1; run < runs; run++) best = std::min(best, seconds(call));
  return best;
}
template <class Call>
double median(int runs, const Call& call) {
  call();
  std::vector<double> times(static_cast<std::size_t>(runs));
  for (double& time : times) time = seconds(call);
  const auto middle = times.begin() + runs / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

/// The number of sums, and of multiply-adds in a round: at least 8, to keep two units with a latency of four busy, and
/// few enough to stay in registers.
inline constexpr int kPeakSums = alibi::kernel::kManyRegisters ? 16 : 10;
inline constexpr int kPeakRounds = 1 << 20, kPeakRuns = 100;

/// The sum of all vectors and lanes, so that the compiler cannot remove any of the work.
template <class T>
EIGEN_ALWAYS_INLINE T total(const alibi::kernel::Vec<T> (&sum)[kPeakSums]) {
  namespace kernel = alibi::kernel;
  auto all = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kPeakSums; i++) all = kernel::add(all, sum[i]);
  return kernel::reduce_add(all);
}

/// Multiply-adds in registers only. Each sum grows by the factor times its neighbour, which no compiler can fold or
/// move out of the loop, and which suits both forms of the instruction. It is a separate function, so that no other
/// code needs registers.
template <class T>
[[gnu::noinline]] T multiply_adds(int rounds, T factor) {
  namespace kernel = alibi::kernel;
  const auto scale = kernel::broadcast<T>(factor);
  kernel::Vec<T> sum[kPeakSums];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::broadcast<T>(T(i) * factor);
  for (int round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::fma(scale, sum[(i + 1) % kPeakSums], sum[i]);
  return total<T>(sum);
}

/// GFLOP/s of multiply_adds() on one core, measured when the process first needs it. The factor is volatile, because
/// otherwise the compiler calls the function once and the other runs do nothing.
template <class T>
double core_peak() {
  static const double time = fastest(kPeakRuns, [] {
    const volatile T factor = T(1e-9);
    benchmark::DoNotOptimize(multiply_adds<T>(kPeakRounds, factor));
  });
  return 2e-9 * kPeakSums * alibi::kernel::kLanes<T> * kPeakRounds / time;
}

/// Dot products of bfloat16 pairs in registers only. `Pair` is kernel::BfloatPair; as a template parameter it is not
/// compiled on a machine without the instruction.
template <class Pair>
[[gnu::noinline]] float pair_products(int rounds, Pair a, Pair b) {
  namespace kernel = alibi::kernel;
  const auto x = kernel::broadcast<Pair>(a), y = kernel::broadcast<Pair>(b);
  kernel::Vec<float> sum[kPeakSums];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::broadcast<float>(float(i));
  for (int round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kPeakSums; i++) sum[i] = kernel::fma(x, y, sum[i]);
  return total<float>(sum);
}

/// GFLOP/s of pair_products() on one core, with four operations in each lane.
template <class Pair = alibi::kernel::BfloatPair>
double core_dot_peak() {
  static const double time = fastest(kPeakRuns, [] {
    const volatile float small = 1e-9F;
    const auto factor = Eigen::bfloat16(float(small));
    benchmark::DoNotOptimize(pair_products<Pair>(kPeakRounds, {factor, factor}, {factor, factor}));
  });
  return 4e-9 * kPeakSums * alibi::kernel::kLanes<float> * kPeakRounds / time;
}

/// The bytes that plain_read() reads at a time: a vector for each of its sums.
inline constexpr std::size_t kReadBlock = sizeof(alibi::kernel::Vec<float>) * kPeakSums;

/// Reads memory once and in order, with one addition for each vector, which keeps up even with the first-level cache.
/// The hardware prefetches.
[[gnu::noinline]] inline float read_blocks(const std::byte* memory, std::size_t blocks) {
  namespace kernel = alibi::kernel;
  kernel::Vec<float> sum[kPeakSums];
#pragma GCC unroll 16
  for (auto& x : sum) x = kernel::broadcast<float>(0);
  const auto* p = reinterpret_cast<const float*>(memory);  // vector loads may alias any type
  for (std::size_t i = 0; i < blocks; i++, p += kReadBlock / sizeof(float))
#pragma GCC unroll 16
    for (int s = 0; s < kPeakSums; s++)
      sum[s] = kernel::add(sum[s], kernel::load<float>(p + s * kernel::kLanes<float>));
  return total<float>(sum);
}

/// The plain read of memory, except for less than a block at its end, in 32 equal parts that the executor's threads
/// take one after another. Returns the sum of the memory as floats.
inline float plain_read(const void* memory, std::size_t bytes, const alibi::Executor& executor) {
  constexpr std::size_t kParts = 32;
  const std::size_t blocks = bytes / kReadBlock;
  std::array<float, kParts> sums{};
  executor.for_each(kParts, [&](Index task, int) {
    const auto i = std::size_t(task), first = blocks * i / kParts, last = blocks * (i + 1) / kParts;
    sums[i] = read_blocks(static_cast<const std::byte*>(memory) + first * kReadBlock, last - first);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0F);
}

}  // namespace bench
