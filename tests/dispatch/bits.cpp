// Prints the vector unit of an attention function, and a hash of the bits of its output.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "attend.hpp"

Attend ATTEND;

int main() {
  constexpr Shape shape{.heads = 3, .tokens = 250, .head_dim = 40};
  std::mt19937 random(1);
  const auto array = [&] {
    std::vector<float> x(static_cast<std::size_t>(shape.heads * shape.tokens * shape.head_dim));
    for (float& entry : x) entry = static_cast<float>(random()) / 0x1p30f - 2;
    return x;
  };
  const std::vector<float> q = array(), k = array(), v = array(), slopes{0.5f, 0.0625f, 0.00390625f};
  std::vector<float> out(q.size());
  const Unit unit = ATTEND(out.data(), q.data(), k.data(), v.data(), slopes.data(), shape);

  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const float entry : out) {
    std::uint32_t bits;
    std::memcpy(&bits, &entry, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  std::printf("%s %016llx\n", unit.isa, static_cast<unsigned long long>(hash));
}
