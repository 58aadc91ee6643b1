// Whether arrays share memory. Internal.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "alibi/detail/call.hpp"
#include "alibi/error.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The memory of an array, with head_dim and strides in bytes, and the name of the array.
struct Memory {
  View<const char> bytes;
  const char* name;
};

inline Memory memory_in_bytes(const void* data, const View<const char>& shape, Index size, const char* name) {
  return {{static_cast<const char*>(data), shape.batch, shape.heads, shape.tokens, shape.head_dim * size,
           shape.batch_stride * size, shape.head_stride * size, shape.token_stride * size},
          name};
}
template <class T>
Memory memory_of(const View<T>& x, const char* name) {
  return memory_in_bytes(
      x.data, {nullptr, x.batch, x.heads, x.tokens, x.head_dim, x.batch_stride, x.head_stride, x.token_stride},
      sizeof(T), name);
}
inline Memory memory_of(const SlopeView& m) {
  const Index size = size_of(m.scalar);
  return memory_in_bytes(m.data, {nullptr, m.batch, 1, m.heads, 1, m.batch_stride, 0, m.head_stride}, size, "slopes");
}
template <BiasKind kind, class T>
Memory memory_of(const BiasView<T>& bias) {
  if (kind == BiasKind::slopes) return memory_of(bias.slopes);
  if (kind == BiasKind::positions) return memory_of(bias.positions.before);
  const RelativeBias<T>& table = bias.table;
  return memory_of(View<const T>{table.data, 1, 1, table.heads, table.entries, 0, 0, table.head_stride}, "the table");
}

inline bool is_empty(const View<const char>& x) {
  return x.batch == 0 || x.heads == 0 || x.tokens == 0 || x.head_dim == 0;
}

/// The sizes and strides of a view, without those of head_dim.
inline std::array<std::pair<Index, Index>, 3> axes_of(const View<const char>& x) {
  return {{{x.batch, x.batch_stride}, {x.heads, x.head_stride}, {x.tokens, x.token_stride}}};
}

/// Whether two arrays are interleaved without a common byte, as q, k and v are in slices of one array. This is the case
/// if, modulo one of the strides, their bytes lie in disjoint ranges.
inline bool interleaved(const View<const char>& a, const View<const char>& b) {
  // The bytes of a view within one period, or 0 if they are not the same in every period.
  const auto extent = [](const View<const char>& x, Index period) {
    Index all = x.head_dim;
    for (const auto& [size, stride] : axes_of(x)) {
      if (size <= 1 || stride % period == 0) continue;
      if (stride < 0 || stride > period) return Index(0);
      all += (size - 1) * stride;
    }
    return all;
  };
  const auto gap = Index(reinterpret_cast<std::uintptr_t>(b.data) - reinterpret_cast<std::uintptr_t>(a.data));
  for (const Index period : {a.batch_stride, a.head_stride, a.token_stride}) {
    if (period <= 0) continue;
    const Index of_a = extent(a, period), of_b = extent(b, period), from = (gap % period + period) % period;
    if (of_a > 0 && of_b > 0 && of_a <= from && from + of_b <= period) return true;
  }
  return false;
}

/// Whether two arrays may share a byte. False only if they certainly do not.
inline bool overlap(const View<const char>& a, const View<const char>& b) {
  const auto range = [](const View<const char>& x) {
    std::uintptr_t low = reinterpret_cast<std::uintptr_t>(x.data), high = low + std::uintptr_t(x.head_dim);
    for (const auto& [size, stride] : axes_of(x)) (stride < 0 ? low : high) += std::uintptr_t((size - 1) * stride);
    return std::pair(low, high);
  };
  if (is_empty(a) || is_empty(b)) return false;
  const auto [a_low, a_high] = range(a);
  const auto [b_low, b_high] = range(b);
  return a_low < b_high && b_low < a_high && !interleaved(a, b);
}

/// Whether two rows of an array may share a byte. False only if they certainly do not.
inline bool overlaps_itself(const View<const char>& x) {
  if (is_empty(x)) return false;
  std::array axes = axes_of(x);
  for (auto& [size, stride] : axes) stride = std::abs(stride);
  std::sort(axes.begin(), axes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Index extent = x.head_dim;
  for (const auto& [size, stride] : axes)
    if (size > 1) {
      if (stride < extent) return true;
      extent += stride * (size - 1);
    }
  return false;
}

/// Checks that an array that is written shares no memory with the others.
inline void require_disjoint(const Memory& written, std::initializer_list<Memory> read) {
  for (const Memory& other : read)
    require(!overlap(written.bytes, other.bytes), written.name, " overlaps ", other.name,
            "; expected memory of its own");
}

}  // namespace alibi::inline ALIBI_ABI::detail
