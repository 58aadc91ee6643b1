// Positions of the tokens as real numbers, in place of their indices: time stamps, packed documents with gaps, and sums
// of data-dependent decays. A bias of positions replaces slopes in every call that accepts them, attention over a cache
// excepted.
//
//   s_ij = τ q_i·k_j - m_h |c_i - c_j|           c_i: the position of query i, c_j that of key j
//
// With two_sided() slopes, m is the slope before the query for c_j < c_i and the slope after it for c_j > c_i. The mask
// still counts tokens. Slopes must be finite and not negative.
//
// The gate of the Forgetting Transformer (Lin et al., ICLR 2025, arXiv 2503.02130), bias_ij = Σ_{l = j+1..i} log f_l,
// is this bias for c_i = -Σ_{l <= i} log f_l and a slope of 1.
//
// positions() requires that positions do not decrease along a sequence, and then prunes as for slopes: distances of
// tiles are those of their nearest keys. positions_in_any_order() requires no order, and nothing is pruned.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "alibi/error.hpp"
#include "alibi/two_sided.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// Slopes and positions, as positions() returns them. The types are references where arrays are not copied. Queries is
/// void if queries and keys have the same positions.
template <class Slopes, class Keys, class Queries = void>
struct TokenPositions {
  Slopes slopes;           ///< the slopes, or two_sided() slopes
  Keys keys;               ///< the positions of the keys
  Queries queries;         ///< the positions of the queries
  bool any_order = false;  ///< whether positions may decrease
};
/// Slopes, and positions that queries and keys share.
template <class Slopes, class Keys>
struct TokenPositions<Slopes, Keys, void> {
  Slopes slopes;           ///< the slopes, or two_sided() slopes
  Keys keys;               ///< the positions of queries and keys
  bool any_order = false;  ///< whether positions may decrease
};

/// A view of positions [batch, heads, tokens] of float or double. Strides are in entries. A batch or heads of 1 stands
/// for all.
struct PositionView {
  const void* data = nullptr;             ///< the position of token 0 of head 0 of batch entry 0
  bool is_double = false;                 ///< whether `data` points to double
  Index batch = 1, heads = 1,             ///< the number of batch entries and heads, or 1
      tokens = 0;                         ///< the number of tokens
  Index batch_stride = 0,                 ///< from one batch entry to the next; 0: all share their positions
      head_stride = 0, token_stride = 1;  ///< from one head, and from one token, to the next

  /// The position of a token.
  double operator()(Index b, Index h, Index token) const {
    const Index at = b * batch_stride + h * head_stride + token * token_stride;
    return is_double ? static_cast<const double*>(data)[at] : double(static_cast<const float*>(data)[at]);
  }
};

inline namespace ALIBI_ABI {

namespace detail {

template <class X>
inline constexpr bool kIsPositions = false;
template <class Slopes, class Keys, class Queries>
inline constexpr bool kIsPositions<TokenPositions<Slopes, Keys, Queries>> = true;
/// Whether queries and keys share their positions.
template <class X>
inline constexpr bool kSharesPositions = false;
template <class Slopes, class Keys>
inline constexpr bool kSharesPositions<TokenPositions<Slopes, Keys, void>> = true;

/// The bias of a call that has positions, two-sided slopes, or both.
struct PositionBias {
  SlopeView before{}, after{};
  bool one_slope = false;          // whether both sides have the same slopes, with one gradient
  bool has_positions = false;      // whether there are positions; if not, these are the indices
  PositionView keys{}, queries{};  // null if there are none
  bool shared = false;             // whether keys and queries have the same positions, with one gradient
  bool any_order = false;          // whether positions may decrease
};

/// An array of positions, or of their gradient, as a view [batch, heads, tokens] with a head_dim of 1. A size of 1 has
/// a stride of 0.
template <class Array>
auto position_array(Array& array) {
  using T = std::remove_reference_t<decltype(*array.data())>;
  static_assert(std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, double>,
                "alibi: positions must hold float or double.");
  View<T> view{array.data(), 1, 1, Index(array.size()), 1, 0, 0, 1};
  if constexpr (is_matrix<Array>) {
    static_assert(bool(Array::Flags & Eigen::DirectAccessBit),
                  "alibi: positions are an Eigen expression; evaluate them into a vector or a matrix first.");
    if constexpr (bool(Array::IsVectorAtCompileTime)) {
      view.token_stride = array.innerStride();
    } else {
      view.heads = array.rows(), view.tokens = array.cols();
      view.head_stride = array.rowStride(), view.token_stride = array.colStride();
    }
  } else if constexpr (requires { Array::NumDimensions; }) {
    constexpr int kRank = Array::NumDimensions;
    static_assert(1 <= kRank && kRank <= 3,
                  "alibi: positions are a tensor of rank 1, [tokens], 2, [heads, tokens], or 3, [batch, heads, "
                  "tokens].");
    const auto size = [&array](int axis) {  // counted from the last one
      constexpr bool kRowMajor = int(Array::Layout) == int(Eigen::RowMajor);
      return Index(array.dimensions()[std::size_t(kRowMajor ? kRank - 1 - axis : axis)]);
    };
    view.tokens = size(0);
    if constexpr (kRank > 1) view.heads = size(1), view.head_stride = view.tokens;
    if constexpr (kRank > 2) view.batch = size(2), view.batch_stride = view.heads * view.tokens;
  }
  if (view.heads == 1) view.head_stride = 0;
  if (view.batch == 1) view.batch_stride = 0;
  return view;
}

}  // namespace detail

/// Positions as a view: an Eigen vector, a tensor of rank 1 or a contiguous range [tokens]; an Eigen matrix or a tensor
/// of rank 2 [heads, tokens]; or a tensor of rank 3 [batch, heads, tokens]. Column-major tensors are mirrored.
template <class Array>
PositionView position_view(const Array& array) {
  const auto x = detail::position_array(array);
  constexpr bool kIsDouble = std::is_same_v<std::remove_cv_t<std::remove_pointer_t<decltype(x.data)>>, double>;
  return {x.data, kIsDouble, x.batch, x.heads, x.tokens, x.batch_stride, x.head_stride, x.token_stride};
}

/// A bias -m |c_i - c_j| of positions that queries and keys share. `slopes` are slopes or two_sided() slopes of
/// `heads`, finite and not negative. `tokens` holds the positions, float or double: [tokens], [heads, tokens] or
/// [batch, heads, tokens], for the heads of q; a heads or batch of 1 stands for all. The positions must not decrease
/// along a sequence. Calls throw std::invalid_argument if they do, if one is not a number within ±1e300, and for sizes
/// that do not fit. Named arrays are not copied and must outlive the result; temporaries are moved into it.
template <class Slopes, class Tokens>
TokenPositions<Slopes, Tokens> positions(Slopes&& slopes, Tokens&& tokens) {
  return {std::forward<Slopes>(slopes), std::forward<Tokens>(tokens)};
}
/// The same with positions of their own for keys and queries.
template <class Slopes, class Keys, class Queries>
TokenPositions<Slopes, Keys, Queries> positions(Slopes&& slopes, Keys&& keys, Queries&& queries) {
  return {std::forward<Slopes>(slopes), std::forward<Keys>(keys), std::forward<Queries>(queries)};
}

/// positions() that may decrease. Every visible key is read.
template <class Slopes, class Tokens>
TokenPositions<Slopes, Tokens> positions_in_any_order(Slopes&& slopes, Tokens&& tokens) {
  return {std::forward<Slopes>(slopes), std::forward<Tokens>(tokens), true};
}
/// The same with positions of their own for keys and queries.
template <class Slopes, class Keys, class Queries>
TokenPositions<Slopes, Keys, Queries> positions_in_any_order(Slopes&& slopes, Keys&& keys, Queries&& queries) {
  return {std::forward<Slopes>(slopes), std::forward<Keys>(keys), std::forward<Queries>(queries), true};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
