#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "attend.hpp"

int main() {
  constexpr int kSkipped = 77;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kSkipped;

  const Shape shape{.heads = 3, .tokens = 150, .head_dim = 40};
  const auto size = static_cast<std::size_t>(shape.heads * shape.tokens * shape.head_dim);
  std::mt19937 random(1);
  const auto normal = [&] {
    std::vector<float> x(size);
    std::generate(x.begin(), x.end(), [&] { return std::normal_distribution<float>()(random); });
    return x;
  };
  const std::vector<float> q = normal(), k = normal(), v = normal(), slopes{0.5f, 0.0625f, 0.00390625f};
  const auto run = [&](Attend& attend) {
    std::vector<float> out(size, NAN);
    attend(out.data(), q.data(), k.data(), v.data(), slopes.data(), shape);
    return out;
  };

  const std::vector<float> baseline = run(attend_baseline);
  const auto agrees = [&](const char* name, const std::vector<float>& out) {
    bool close = true;  // false for a NaN
    float worst = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const float error = std::abs(out[i] - baseline[i]);
      close = close && error <= 1e-5f;
      worst = std::max(worst, error);
    }
    std::printf("%s against baseline: largest difference %g\n", name, static_cast<double>(worst));
    return close;
  };
  const bool avx2 = agrees("avx2", run(attend_avx2));
  const bool native = agrees("native", run(attend_native));
  return avx2 && native ? 0 : 1;
}
