#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attend.hpp"

namespace {

constexpr int kSkipped = 77;
constexpr Shape kShape{.heads = 3, .tokens = 150, .head_dim = 40};
constexpr auto kSize = static_cast<std::size_t>(kShape.heads * kShape.tokens * kShape.head_dim);

std::vector<float> normal(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> x(kSize);
  std::generate(x.begin(), x.end(), [&] { return distribution(random); });
  return x;
}

struct Result {
  const char* name;
  std::vector<float> out;
  Unit unit;
};

Result run(const char* name, Attend& attend) {
  const std::vector<float> q = normal(1), k = normal(2), v = normal(3), slopes{0.5f, 0.0625f, 0.00390625f};
  std::vector<float> out(kSize, NAN);
  const Unit unit = attend(out.data(), q.data(), k.data(), v.data(), slopes.data(), kShape);
  std::printf("%s: namespace %s, %d lanes%s, %zu bytes of scratch\n", name, unit.isa, unit.lanes,
              unit.fma ? ", fused" : "", unit.scratch);
  return {name, out, unit};
}

bool expect(bool ok, const char* what, const char* name, const char* other = "") {
  if (!ok) std::printf("%s %s: %s\n", name, other, what);
  return ok;
}

bool agree(const Result& a, const Result& b) {
  bool close = true;  // false if there is a NaN
  float worst = 0;
  for (std::size_t i = 0; i < kSize; ++i) {
    const float error = std::abs(a.out[i] - b.out[i]);
    close = close && error <= 1e-5f;
    worst = std::max(worst, error);
  }
  std::printf("%s against %s: largest difference %g\n", a.name, b.name, static_cast<double>(worst));

  // Units for different vectors must have different kernels, by name and in fact, because the linker keeps one kernel
  // of each name. Scratch grows with the lanes of the kernels that ran. A fused multiply-add rounds differently.
  const bool lanes = a.unit.lanes != b.unit.lanes, fma = a.unit.fma != b.unit.fma;
  const bool distinct = std::strcmp(a.unit.isa, b.unit.isa) != 0;
  bool ok = expect(close, "results differ", a.name, b.name);
  ok &= expect(distinct || !(lanes || fma), "one namespace for different kernels", a.name, b.name);
  ok &= expect(!lanes || a.unit.scratch != b.unit.scratch, "kernels merged: same scratch", a.name, b.name);
  ok &= expect(!fma || worst > 0, "kernels merged: same bits", a.name, b.name);
  return ok;
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kSkipped;
  const Result all[] = {run("scalar", attend_scalar), run("baseline", attend_baseline), run("avx2", attend_avx2),
                        run("native", attend_native)};
  const Unit &scalar = all[0].unit, &baseline = all[1].unit, &avx2 = all[2].unit, &native = all[3].unit;

  bool ok = true;
  for (const Result& a : all)
    for (const Result& b : all)
      if (&a > &b) ok &= agree(a, b);

  // Checks the units' instruction sets; otherwise the comparisons above test nothing.
  ok &= expect(scalar.lanes == 1, "expected 1 lane", "scalar");
  ok &= expect(avx2.lanes >= 8 && avx2.fma, "expected at least 8 lanes and fused multiply-adds", "avx2");
  ok &= expect(native.lanes == (__builtin_cpu_supports("avx512f") ? 16 : 8) && native.fma,
               "expected the lanes of this machine and fused multiply-adds", "native");
#ifdef PLAIN_BASELINE
  ok &= expect(baseline.lanes == 4 && !baseline.fma && !scalar.fma, "expected 4 lanes, nothing fused", "baseline");
  for (const Result& result : {all[0], all[1], all[2]})
    ok &= expect(std::strcmp(result.name, result.unit.isa) == 0, "expected this name of the unit", result.name);
#else
  ok &= expect(baseline.lanes >= 4, "expected at least 4 lanes", "baseline");
#endif
  return ok ? 0 : 1;
}
