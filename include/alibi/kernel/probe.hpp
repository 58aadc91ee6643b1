// Whether the dot product instruction for bfloat16 pays on this processor. Where it exists it may do two products a
// lane in the time of one multiply-add, or need four times as long for them (seen on a Sapphire Rapids Xeon): no flag
// tells.
#pragma once

#include <algorithm>
#include <chrono>

#include "alibi/kernel/simd.hpp"

namespace alibi::inline ALIBI_ISA::kernel {

/// Seconds of some thousand products of U, a lane each, in sums that do not wait for one another: the best of a few
/// runs.
template <class U>
double seconds_of_products() {
  constexpr int kSums = 16, kRounds = 256, kRuns = 8;
  U numbers[kLanes<U>] = {};
  asm volatile("" : : "r"(numbers) : "memory");  // the compiler is not to know that they are 0
  double best = 1;
  for (int run = 0; run < kRuns; run++) {
    const auto start = std::chrono::steady_clock::now();
    const Pack<U> x = load<U>(numbers);
    Pack<float> sum[kSums];
    for (int i = 0; i < kSums; i++) sum[i] = splat<float>(float(i));  // no two alike, or they would be made one
    for (int round = 0; round < kRounds; round++) {
#pragma GCC unroll 16
      for (int i = 0; i < kSums; i++) sum[i] = fma(x, x, sum[i]);
      asm volatile("" ::: "memory");
    }
    float all[kLanes<float>];
    for (const auto& s : sum) {
      store<float>(all, s);
      asm volatile("" : : "r"(all) : "memory");
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Measured once in a process, in some 50 microseconds: the same on the same processor, as the two differ by far. A
/// template, so that what the processor does not have is not compiled.
template <bool exists = kDotsPairs>
bool dots_are_faster() {
  if constexpr (exists) {
    static const bool faster = 1.3 * seconds_of_products<BfloatPair>() < 2 * seconds_of_products<float>();
    return faster;
  }
  return false;
}

}  // namespace alibi::inline ALIBI_ISA::kernel
