// Eigen tensors as arrays of attention: rank 4, row-major [batch, heads, tokens, head_dim]. A column-major tensor holds
// the same memory with its dimensions in the mirrored order, [head_dim, tokens, heads, batch].
#pragma once

#include <cstddef>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

namespace detail {

/// Adapter of tensors of rank 4.
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

/// VarlenAdapter of tensors of rank 3: row-major [tokens, heads, head_dim], column-major mirrored.
template <class Plain>
struct VarlenTensorAdapter {
  using Scalar = std::remove_const_t<typename Plain::Scalar>;
  static constexpr bool kRowMajor = int(Plain::Layout) == int(Eigen::RowMajor);
  static_assert(Plain::NumDimensions == 3,
                "alibi: a tensor of varlen attention has rank 3, [tokens, heads, head_dim] in row-major order.");

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

/// Tensors as arrays of attention.
template <class T, int rank, int options, class I>
struct Adapter<Eigen::Tensor<T, rank, options, I>> : detail::TensorAdapter<Eigen::Tensor<T, rank, options, I>> {};

/// Tensor maps as arrays of attention.
template <class Plain, int options, template <class> class MakePointer>
struct Adapter<Eigen::TensorMap<Plain, options, MakePointer>> : detail::TensorAdapter<std::remove_const_t<Plain>> {};

/// Tensors as arrays of varlen attention.
template <class T, int rank, int options, class I>
struct VarlenAdapter<Eigen::Tensor<T, rank, options, I>>
    : detail::VarlenTensorAdapter<Eigen::Tensor<T, rank, options, I>> {};

/// Tensor maps as arrays of varlen attention.
template <class Plain, int options, template <class> class MakePointer>
struct VarlenAdapter<Eigen::TensorMap<Plain, options, MakePointer>>
    : detail::VarlenTensorAdapter<std::remove_const_t<Plain>> {};

/// The gradient of slopes that are a tensor.
template <class T, class S, int rank, int options, class I>
struct SlopesLike<T, Eigen::Tensor<S, rank, options, I>> {
  /// The type of the gradient: a tensor of the same rank and order.
  using Tensor = Eigen::Tensor<T, rank, int(Eigen::Tensor<S, rank, options, I>::Layout)>;
  /// A new tensor of the sizes of `slopes`.
  static Tensor make(const Eigen::Tensor<S, rank, options, I>& slopes) { return Tensor(slopes.dimensions()); }
};

/// The gradient of slopes that are a tensor map.
template <class T, class Plain, int options, template <class> class MakePointer>
struct SlopesLike<T, Eigen::TensorMap<Plain, options, MakePointer>> {
  /// The type of the gradient: a tensor of the same rank and order.
  using Tensor = Eigen::Tensor<T, Plain::NumDimensions, int(Plain::Layout)>;
  /// A new tensor of the sizes of `slopes`.
  static Tensor make(const Eigen::TensorMap<Plain, options, MakePointer>& slopes) {
    return Tensor(slopes.dimensions());
  }
};

}  // namespace alibi::inline ALIBI_ABI
