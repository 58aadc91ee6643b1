// The parts of a call: its shape and its options, and whether the library must accept them.
#pragma once

#include <algorithm>
#include <alibi/options.hpp>
#include <memory>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "array.hpp"
#include "judge.hpp"

namespace fuzz {

template <class E>
using Sum = alibi::detail::Sum<E>;

struct Shape {
  Index batch, kv_heads, group, queries, keys, head_dim, value_dim;

  Index heads() const { return kv_heads * group; }
  double work() const {
    return double(batch * heads()) * double(queries) * double(keys) * double(head_dim + value_dim + 16);
  }
};

/// A shape large enough for several prunable tiles, and small enough to check hundreds of calls a second.
inline Shape shape_of(Input& in) {
  constexpr double kMaxWork = 6e5;
  constexpr std::array<Index, 8> batches = {1, 1, 1, 1, 2, 3, 2, 0}, heads = {1, 1, 1, 2, 2, 3, 1, 2};
  const auto counts = in.byte();
  Shape s{batches[counts % 8], heads[counts / 8 % 8], 1 + counts / 64, 0, 0, 0, 0};
  s.queries = in.integer(0, 240);
  s.keys = in.one_in(4) ? in.integer(0, 300) : std::clamp<Index>(s.queries + in.small() / 2, 0, 300);
  const auto dim = [&in](Index most) {
    return in.one_in(64) ? 0 : in.flag() ? in.integer(1, 70) : in.integer(1, most);
  };
  s.head_dim = dim(9);
  s.value_dim = dim(5);
  if (in.one_in(8)) s.queries = std::min<Index>(s.queries, 2);
  while (s.work() > kMaxWork) {
    if (s.batch > 1)
      s.batch--;
    else if (s.group > 1)
      s.group--;
    else if (s.kv_heads > 1)
      s.kv_heads--;
    else if (s.head_dim > 8)
      s.head_dim /= 2;
    else if (s.value_dim > 4)
      s.value_dim /= 2;
    else
      s.queries -= s.queries / 4 + 1;
  }
  return s;
}

inline alibi::Mask mask_of(Input& in, Index queries, Index keys) {
  constexpr Index kFar = Index(1) << 61, kLeast = std::numeric_limits<Index>::min();
  constexpr std::array<Index, 12> windows = {0, -1, kLeast, 1, 2, 1 << 20, kFar, 2 * kFar, ~kLeast, 63, 64, 65};
  constexpr std::array<Index, 16> offsets = {
      1 << 24,   -(1 << 24), Index(1) << 40, -(Index(1) << 40), kFar, -kFar, kFar + 1,
      -kFar - 1, kLeast,     ~kLeast,        1 << 20,           -65,  0,     1,
      -1,        300};
  const auto kind = in.byte();
  alibi::Mask mask{.causal = !(kind & 1)};
  if (kind & 2) mask.window = in.integer(1, keys + 10);
  if (kind & 4) mask.query_offset = in.integer(-queries - 10, keys + 10);
  if (kind & 8 && (mask.causal || in.one_in(16))) mask.prefix = in.one_in(32) ? in.small() : in.integer(0, keys + 10);
  if (kind & 16) mask.sinks = in.one_in(32) ? in.small() : in.integer(0, in.flag() ? 8 : keys + 10);
  if (kind % 32 == 31) mask.window = in.one_of(windows);
  if (kind / 32 == 7) mask.query_offset = in.one_of(offsets);
  return mask;
}
inline bool is_right(const alibi::Mask& mask) {
  const Index far = Index(1) << 61, offset = mask.query_offset.value_or(0);
  return mask.window.value_or(1) >= 1 && -far <= offset && offset <= far && mask.prefix >= 0 &&
         (mask.causal || mask.prefix == 0) && mask.sinks.value_or(0) >= 0;
}

/// Query offsets and prefixes of sequences, for some calls. They own the lists of their options.
struct Lists {
  std::vector<Index> query_offsets, prefixes;
  bool right = true;

  Lists(Input& in, alibi::Options& options, Index sequences, Index queries, Index keys) {
    const auto kind = in.byte() % 8;
    const auto take = [&](std::vector<Index>& list, Index low, std::span<const Index>& to) {
      for (Index s = 0; s < sequences; s++) list.push_back(in.integer(low, keys + 10));
      if (in.one_in(64)) list.push_back(0);
      right = right && (list.empty() || Index(list.size()) == sequences);
      to = list;
    };
    if (kind & 1) take(query_offsets, -queries - 10, options.query_offsets);
    if (kind & 2) take(prefixes, 0, options.prefixes);
    if (!query_offsets.empty() && !in.one_in(16)) options.mask.query_offset.reset();
    if (!prefixes.empty() && !in.one_in(16)) options.mask.prefix = 0;
    right = right && (query_offsets.empty() || !options.mask.query_offset);
    right = right && (prefixes.empty() || (options.mask.prefix == 0 && options.mask.causal));
  }
  /// The mask of sequence s.
  alibi::Mask mask_of(alibi::Mask mask, Index s) const {
    if (!query_offsets.empty()) mask.query_offset = query_offsets[std::size_t(s)];
    if (!prefixes.empty()) mask.prefix = prefixes[std::size_t(s)];
    return mask;
  }
};

inline std::optional<double> scale_of(Input& in) {
  constexpr std::array odd = {0.,    -0.,   1e-45,     1e-40,      1e38,   -1e38,     2e38,  3e38,
                              1e300, 1e308, kInfinity, -kInfinity, 1e-310, 0x1p-1074, 1e-20, 1.};
  switch (in.byte() % 16) {
    case 8:
    case 9:
    case 10:
      return in.small() / 64.;
    case 11:
    case 12:
      return std::exp2(in.small() / 8.);
    case 13:
      return -std::exp2(in.small());
    case 14:
      return in.one_in(4) ? std::nan("") : in.one_of(odd);
    default:
      return std::nullopt;
  }
}

inline std::optional<double> tolerance_of(Input& in) {
  constexpr std::array usual = {1e-5, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.9, 0.999, 0x1p-24, 1e-12, 1e-29};
  constexpr std::array odd = {-0., 1e-31, 1e-40, 0x1p-1074, 1., 2., -1e-9, kInfinity, -kInfinity, 1e-310};
  switch (in.byte() % 16) {
    case 4:
    case 5:
    case 6:
      return 0;
    case 7:
      return in.one_in(8) ? std::nan("") : in.one_of(odd);
    case 8:
    case 9:
      return std::exp2(-in.byte() / 4. - 0.01);
    case 10:
    case 11:
    case 12:
    case 13:
    case 14:
    case 15:
      return in.one_of(usual);
    default:
      return std::nullopt;
  }
}

/// The share of the softmax mass that may be pruned. A share below 2^-100 prunes nothing, as a tolerance of 0 does.
template <class T>
double share_of(const std::optional<double>& tolerance) {
  return tolerance.value_or(double(std::numeric_limits<T>::epsilon()) / 2);
}

template <class T>
std::vector<T> slopes_of(Input& in, Index count) {
  std::vector<T> slopes;
  const auto kind = in.byte() % 8;
  for (Index i = 0; i < count; i++) {
    switch (kind) {
      case 0:
        slopes.push_back(T(0.5));
        break;
      case 1:
        slopes.push_back(T(std::exp2(-8. * double(i + 1) / double(count))));
        break;
      case 2:
      case 3:
      case 4:
        slopes.push_back(T(std::exp2(in.small() / 16. - 2)));
        break;
      case 5:
        slopes.push_back(T(in.small() / 64.));
        break;
      case 6:
        slopes.push_back(T(0));
        break;
      default:
        slopes.push_back(special<T>(in));
    }
  }
  return slopes;
}

/// Runs tasks in descending order, to differ as much as possible from the calling thread.
inline alibi::Executor executor_of(int slots) {
  return alibi::Executor(slots, [](Index count, alibi::Task task) {
    for (Index i = count; i-- > 0;) task(i);
  });
}

/// The options of a call, except for its pruning statistics.
template <class E>
alibi::Options options_of(Input& in, Index queries, Index keys) {
  alibi::Options options{.mask = mask_of(in, queries, keys), .scale = scale_of(in), .tolerance = tolerance_of(in)};
  const auto rest = in.byte();
  if (rest & 1) options.executor = executor_of(2 + rest / 2 % 4);
  if (rest & 16) options.bf16_dot = (rest & 32) != 0;
  return options;
}

/// Whether arrays of E are multiplied by the dot product instruction.
template <class E>
bool pairs(const alibi::Options& options) {
  if constexpr (std::is_same_v<E, Eigen::bfloat16> && alibi::kernel::kDotsPairs)
    return options.bf16_dot;
  else
    return false;
}

template <class T>
bool are_right(const alibi::Options& options, Index head_dim) {
  const double scale = options.scale.value_or(1 / std::sqrt(double(head_dim))), share = share_of<T>(options.tolerance);
  return is_right(options.mask) && std::isfinite(T(scale * std::numbers::log2e)) && share >= 0 && share < 1;
}

template <class T>
bool all_finite(const std::vector<T>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](T x) { return std::isfinite(x); });
}

inline void describe(std::ostream& text, const alibi::Options& options) {
  const alibi::Mask& mask = options.mask;
  text << (mask.causal ? ", causal" : ", bidirectional");
  if (mask.window) text << ", window " << *mask.window;
  if (mask.query_offset) text << ", query_offset " << *mask.query_offset;
  if (mask.prefix != 0) text << ", prefix " << mask.prefix;
  if (mask.sinks) text << ", sinks " << *mask.sinks;
  for (const Index offset : options.query_offsets) text << ", query_offsets " << offset;
  for (const Index prefix : options.prefixes) text << ", prefixes " << prefix;
  if (options.scale) text << ", scale " << *options.scale;
  if (options.tolerance) text << ", tolerance " << *options.tolerance;
  if (options.bf16_dot) text << ", bf16_dot " << options.bf16_dot;
  text << ", max_concurrency " << options.executor.max_concurrency();
}

/// Fills the scratch with NaN, or with other large numbers, or leaves it at the size that the call needs.
inline void dirty(Input& in, alibi::Workspace& workspace) {
  constexpr std::size_t kBytes = std::size_t(1) << 21;
  const auto kind = in.byte() % 4;
  if (kind > 1) std::memset(alibi::detail::scratch_memory(workspace, kBytes), kind == 2 ? 0xff : 0x7f, kBytes);
}

template <class E>
constexpr const char* name_of() {
  if constexpr (std::is_same_v<E, float>)
    return "float";
  else if constexpr (std::is_same_v<E, double>)
    return "double";
  else
    return std::is_same_v<E, Eigen::half> ? "half" : "bfloat16";
}

/// Checks the pruning statistics of a call: the bound is within the tolerance, and no more tiles are computed than are
/// visible.
inline void check_stats(std::span<const alibi::PruningStats> all, double share) {
  for (const alibi::PruningStats& stats : all) {
    check(0 <= stats.mass_bound && stats.mass_bound <= share, "bound ", stats.mass_bound, " with a tolerance of ",
          share);
    check(0 <= stats.tiles_computed && stats.tiles_computed <= stats.tiles_total, "computed ", stats.tiles_computed,
          " of ", stats.tiles_total, " visible tiles");
  }
}

}  // namespace fuzz
