// Arrays [batch, heads, tokens, head_dim] of any layout, and functions that fill them.
#pragma once

#include <algorithm>
#include <alibi/view.hpp>
#include <cstring>
#include <utility>
#include <vector>

#include "input.hpp"

namespace fuzz {

/// Sets all bits to 1, which is NaN. An empty array has no memory, and memset() must not be called with null.
template <class X>
void set_ones(X* x, Index count) {
  if (count > 0) std::memset(static_cast<void*>(x), 0xff, std::size_t(count) * sizeof(X));
}
template <class X>
void set_ones(std::vector<X>& x) {
  set_ones(x.data(), Index(x.size()));
}
template <class X>
bool all_ones(const std::vector<X>& x) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(x.data());
  return std::all_of(bytes, bytes + x.size() * sizeof(X), [](std::uint8_t byte) { return byte == 0xff; });
}

/// An array that owns its memory. The memory ends with the last number of the array, so that the address sanitizer
/// detects every access after it. Gaps of the array are NaN.
template <class E>
class Array {
 public:
  /// A byte selects the layout. Only an array for reading (`read`) may have entries that share memory.
  Array(Input& in, bool read, Index batch, Index heads, Index tokens, Index head_dim) {
    const auto layout = in.byte();
    const bool tokens_first = layout & 1, backwards = layout & 8;
    const Index gap = layout & 2 ? 1 + layout / 64 : 0, between = layout & 4 ? 3 : 0, row = head_dim + gap;
    const Index batches = read && layout & 16 ? 1 : batch, kinds = read && layout & 32 ? 1 : heads;
    const Index token_stride = tokens_first ? kinds * row : row,
                head_stride = tokens_first ? row : tokens * row + between,
                batch_stride = kinds * tokens * row + kinds * between;
    const auto last = [](Index size, Index stride) { return std::max<Index>(size - 1, 0) * stride; };
    const Index front = layout / 64, backward = backwards ? last(tokens, token_stride) : 0;
    const Index end = last(batches, batch_stride) + last(kinds, head_stride) + last(tokens, token_stride) + head_dim;
    memory_.resize(std::size_t(front + end));
    memory_.shrink_to_fit();
    erase();
    view_ = alibi::view(memory_.data() + front + backward, {batch, heads, tokens, head_dim},
                        {batches < batch ? 0 : batch_stride, kinds < heads ? 0 : head_stride,
                         backwards ? -token_stride : token_stride, 1});
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  alibi::View<E> view() const { return view_; }
  Index size() const { return view_.batch * view_.heads * view_.tokens * view_.head_dim; }
  E* row(Index b, Index h, Index i) const {
    return view_.data + b * view_.batch_stride + h * view_.head_stride + i * view_.token_stride;
  }
  /// The number at an index of the array without gaps.
  E& operator[](Index at) const {
    const Index d = at % view_.head_dim, row_of = at / view_.head_dim, i = row_of % view_.tokens,
                head = row_of / view_.tokens;
    return row(head / view_.heads, head % view_.heads, i)[d];
  }
  template <class Body>
  void for_each_row(const Body& body) const {
    for (Index b = 0; b < view_.batch; b++)
      for (Index h = 0; h < view_.heads; h++)
        for (Index i = 0; i < view_.tokens; i++) body(row(b, h, i), b, h, i);
  }
  std::vector<double> numbers() const {
    std::vector<double> all;
    all.reserve(std::size_t(size()));
    for_each_row([&](const E* x, Index, Index, Index) {
      for (Index d = 0; d < view_.head_dim; d++) all.push_back(double(x[d]));
    });
    return all;
  }
  std::vector<E> contents() const {
    std::vector<E> all;
    all.reserve(std::size_t(size()));
    for_each_row([&](const E* x, Index, Index, Index) { all.insert(all.end(), x, x + view_.head_dim); });
    return all;
  }

  /// Sets all numbers to NaN, all bits 1.
  void erase() { set_ones(memory_); }
  /// Whether nothing has been written, inside or outside the array.
  bool erased() const { return all_ones(memory_); }
  /// Erases the array. Returns whether nothing was written outside it.
  bool erase_inside() {
    for_each_row([&](E* x, Index, Index, Index) { set_ones(x, view_.head_dim); });
    return erased();
  }

 private:
  std::vector<E> memory_;
  alibi::View<E> view_;
};

/// Whether two arrays hold the same bits.
template <class E>
bool same_bits(const E* a, const E* b, Index count) {
  const void *x = a, *y = b;
  return count == 0 || std::memcmp(x, y, std::size_t(count) * sizeof(E)) == 0;
}
template <class E>
bool same_bits(const std::vector<E>& a, const std::vector<E>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), Index(a.size()));
}

/// Fills x with numbers of one kind: normal, small and exact, any bits, special, or one constant. Tiles of 64 tokens
/// may have different scales, and all numbers may share a mean.
template <class E>
void fill(Input& in, const Array<E>& x) {
  enum class Kind { normal, exact, bits, specials, constant };
  constexpr std::array kinds = {Kind::normal, Kind::normal,   Kind::exact,   Kind::normal,
                                Kind::bits,   Kind::specials, Kind::constant};
  constexpr std::array factors = {1., 1., 1., 0.25, 4., 20., 1e-3, 0.};
  const Kind kind = in.one_of(kinds);
  double factor = in.one_of(factors);
  if (factor == 0) factor = std::exp2(in.small());

  std::vector<E> pool;  // numbers that repeat
  if (kind == Kind::bits || kind == Kind::specials || kind == Kind::constant) {
    const Index size = kind == Kind::constant ? 1 : in.integer(1, 60);
    for (Index i = 0; i < size; i++) pool.push_back(kind == Kind::bits ? in.bits<E>() : special<E>(in));
  }
  std::array<double, 8> tiles{};
  const bool uneven = in.one_in(4), shifted = in.one_in(8);
  for (double& tile : tiles) tile = uneven ? std::exp2(in.small() / 16.) : 1;
  const double mean = shifted ? in.small() : 0;

  Random random(in.byte());
  std::size_t next = 0;
  x.for_each_row([&](E* row, Index, Index, Index i) {
    const double size = factor * tiles[std::size_t(i / 64) % tiles.size()];
    for (Index d = 0; d < x.view().head_dim; d++) {
      if (!pool.empty())
        row[d] = pool[next++ % pool.size()];
      else if (kind == Kind::exact)
        row[d] = number<E>(double(random.bits() % 9) / 2 - 2);
      else
        row[d] = number<E>(size * random.normal() + mean);
    }
  });
}

/// Sets the keys from some token on, or up to one, to multiples of a query, perhaps with alternating signs: the worst
/// case of Cauchy-Schwarz.
template <class E, class F>
void align(Input& in, const Array<E>& k, const Array<F>& q) {
  if (!in.one_in(4) || k.size() == 0 || q.size() == 0) return;
  const Index query = in.integer(0, q.view().tokens - 1), from = in.integer(0, k.view().tokens - 1);
  const bool before = in.flag(), in_turn = in.flag();
  const double radius = std::exp2(in.small() / 16.);
  k.for_each_row([&](E* row, Index b, Index h, Index j) {
    if ((j < from) != before) return;
    const F* to = q.row(b % q.view().batch, h, query);
    for (Index d = 0; d < k.view().head_dim; d++)
      row[d] = number<E>((in_turn && j % 2 ? -radius : radius) * double(to[d]));
  });
}

/// Inserts single special numbers.
template <class E>
void insert_special(Input& in, const Array<E>& x) {
  if (x.size() == 0) return;
  for (int count = in.byte() % 8 - 4; count > 0; count--) {
    const Index at = in.integer(0, std::min<Index>(x.size() - 1, 65535));
    x[at] = special<E>(in);
  }
}

}  // namespace fuzz
