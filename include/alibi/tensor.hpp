// Eigen tensors as arrays of attention: rank 4, row-major [batch, heads, tokens, head_dim]; a column-major tensor is
// the same memory read in the mirrored order, [head_dim, tokens, heads, batch].
#pragma once

#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA {

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

  using Output = Eigen::Tensor<Scalar, 4, Plain::Layout>;
  using Lse = Eigen::Tensor<LseScalar<Scalar>, 3, Plain::Layout>;
  static Output output(Index batch, Index heads, Index tokens, Index head_dim) {
    return kRowMajor ? Output(batch, heads, tokens, head_dim) : Output(head_dim, tokens, heads, batch);
  }
  static Lse lse(Index batch, Index heads, Index tokens) {
    return kRowMajor ? Lse(batch, heads, tokens) : Lse(tokens, heads, batch);
  }
};

}  // namespace detail

template <class T, int rank, int options, class I>
struct Adapter<Eigen::Tensor<T, rank, options, I>> : detail::TensorAdapter<Eigen::Tensor<T, rank, options, I>> {};

template <class Plain, int options, template <class> class MakePointer>
struct Adapter<Eigen::TensorMap<Plain, options, MakePointer>> : detail::TensorAdapter<std::remove_const_t<Plain>> {};

}  // namespace alibi::inline ALIBI_ISA
