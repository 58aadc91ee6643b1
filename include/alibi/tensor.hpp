// Eigen tensors as arrays of attention: rank 4, row-major [batch, heads, tokens, head_dim]; a column-major tensor is
// the same memory read in the mirrored order, [head_dim, tokens, heads, batch].
#pragma once

#include <cstddef>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

template <class Plain>
struct TensorAdapter {
  using Scalar = std::remove_const_t<typename Plain::Scalar>;
  static constexpr bool kRowMajor = int(Plain::Layout) == int(Eigen::RowMajor);
  static_assert(Plain::NumDimensions == 4,
                "alibi: a tensor of attention has rank 4, [batch, heads, tokens, head_dim] in row-major order.");

  template <class X>
  static auto of(X& x, const char*) {
    const auto size = [&x](int i) { return Index(x.dimensions()[std::size_t(kRowMajor ? i : 3 - i)]); };
    const Index heads = size(1), tokens = size(2), head_dim = size(3);
    using T = std::remove_pointer_t<decltype(x.data())>;
    return View<T>{x.data(), size(0), heads, tokens, head_dim, heads * tokens * head_dim, tokens * head_dim, head_dim};
  }

  template <class T>
  using Like = Eigen::Tensor<T, 4, Plain::Layout>;
  template <class T>
  static Like<T> like(Index batch, Index heads, Index tokens, Index head_dim) {
    return kRowMajor ? Like<T>(batch, heads, tokens, head_dim) : Like<T>(head_dim, tokens, heads, batch);
  }
  using Output = Like<Scalar>;
  using Lse = Eigen::Tensor<Sum<Scalar>, 3, Plain::Layout>;
  static Output output(Index batch, Index heads, Index tokens, Index head_dim) {
    return like<Scalar>(batch, heads, tokens, head_dim);
  }
  static Lse lse(Index batch, Index heads, Index tokens) {
    return kRowMajor ? Lse(batch, heads, tokens) : Lse(tokens, heads, batch);
  }
};

/// Rank 3: [tokens, heads, head_dim] of a packed batch; column-major mirrored.
template <class Plain>
struct PackedTensorAdapter {
  using Scalar = std::remove_const_t<typename Plain::Scalar>;
  static constexpr bool kRowMajor = int(Plain::Layout) == int(Eigen::RowMajor);
  static_assert(Plain::NumDimensions == 3,
                "alibi: a packed tensor has rank 3, [tokens, heads, head_dim] in row-major order.");

  template <class X>
  static auto of(X& x, const char*) {
    const auto size = [&x](int i) { return Index(x.dimensions()[std::size_t(kRowMajor ? i : 2 - i)]); };
    const Index tokens = size(0), heads = size(1), head_dim = size(2);
    using T = std::remove_pointer_t<decltype(x.data())>;
    return View<T>{x.data(), 1, heads, tokens, head_dim, tokens * heads * head_dim, head_dim, heads * head_dim};
  }

  template <class T>
  using Like = Eigen::Tensor<T, 3, Plain::Layout>;
  template <class T>
  static Like<T> like(Index tokens, Index heads, Index head_dim) {
    return kRowMajor ? Like<T>(tokens, heads, head_dim) : Like<T>(head_dim, heads, tokens);
  }
  using Output = Like<Scalar>;
  using Lse = Eigen::Tensor<Sum<Scalar>, 2, Plain::Layout>;
  static Output output(Index tokens, Index heads, Index head_dim) { return like<Scalar>(tokens, heads, head_dim); }
  static Lse lse(Index heads, Index tokens) { return kRowMajor ? Lse(heads, tokens) : Lse(tokens, heads); }
};

}  // namespace detail

template <class T, int rank, int options, class I>
struct Adapter<Eigen::Tensor<T, rank, options, I>> : detail::TensorAdapter<Eigen::Tensor<T, rank, options, I>> {};

template <class Plain, int options, template <class> class MakePointer>
struct Adapter<Eigen::TensorMap<Plain, options, MakePointer>> : detail::TensorAdapter<std::remove_const_t<Plain>> {};

template <class T, int rank, int options, class I>
struct VarlenAdapter<Eigen::Tensor<T, rank, options, I>>
    : detail::PackedTensorAdapter<Eigen::Tensor<T, rank, options, I>> {};

template <class Plain, int options, template <class> class MakePointer>
struct VarlenAdapter<Eigen::TensorMap<Plain, options, MakePointer>>
    : detail::PackedTensorAdapter<std::remove_const_t<Plain>> {};

template <class T, class S, int rank, int options, class I>
struct SlopesLike<T, Eigen::Tensor<S, rank, options, I>> {
  using Tensor = Eigen::Tensor<T, rank, int(Eigen::Tensor<S, rank, options, I>::Layout)>;
  static Tensor make(const Eigen::Tensor<S, rank, options, I>& slopes) { return Tensor(slopes.dimensions()); }
};

template <class T, class Plain, int options, template <class> class MakePointer>
struct SlopesLike<T, Eigen::TensorMap<Plain, options, MakePointer>> {
  using Tensor = Eigen::Tensor<T, Plain::NumDimensions, int(Plain::Layout)>;
  static Tensor make(const Eigen::TensorMap<Plain, options, MakePointer>& slopes) {
    return Tensor(slopes.dimensions());
  }
};

}  // namespace alibi::inline ALIBI_ABI
