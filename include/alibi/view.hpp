// Strided views, the only form in which arrays reach the kernels, and the adapters that make views of arrays.
//
//   type                                          sizes                              copy
//   View, from view(pointer, sizes, strides)      [batch, heads, tokens, head_dim]   none, any strides
//   Eigen::Tensor, TensorMap (tensor.hpp)         the same; column-major: mirrored   none
//   row-major Matrix, Map, Ref, block             [tokens, head_dim], one head       none
//
// The head_dim of a token is contiguous. The other strides are free, so that [batch, tokens, heads, head_dim] arrays
// and slices of a fused QKV array are read in place.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi {

/// A view of an array [batch, heads, tokens, head_dim]. Strides are in elements; that of head_dim is 1. view() makes
/// one.
template <class T>
struct View {
  T* data = nullptr;       ///< element [0, 0, 0, 0]; may be null if there are no tokens
  Index batch = 0,         ///< the number of batch entries
      heads = 0,           ///< the number of heads
      tokens = 0,          ///< the number of tokens
      head_dim = 0;        ///< the number of elements of a token, contiguous
  Index batch_stride = 0,  ///< from one batch entry to the next
      head_stride = 0,     ///< from one head to the next
      token_stride = 0;    ///< from one token to the next

  /// The same view, to be read only.
  EIGEN_ALWAYS_INLINE operator View<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, batch, heads, tokens, head_dim, batch_stride, head_stride, token_stride};
  }
};

/// The scalar of slopes.
enum class SlopeScalar {
  float32,   ///< float
  float64,   ///< double
  bfloat16,  ///< Eigen::bfloat16
  half       ///< Eigen::half
};

/// A view of slopes [heads] or [batch, heads] of any scalar. Strides are in entries; a stride of 0 repeats an entry.
struct SlopeView {
  const void* data = nullptr;                 ///< the slope of head 0 of batch entry 0
  SlopeScalar scalar = SlopeScalar::float32;  ///< what `data` points to
  Index batch = 1,                            ///< the number of batch entries
      heads = 0;                              ///< the number of heads
  Index batch_stride = 0,                     ///< from one batch entry to the next; 0: all share their slopes
      head_stride = 1;                        ///< from one head to the next
};

inline namespace ALIBI_ABI {

namespace detail {

/// Whether E is a scalar of arrays of attention.
template <class E>
inline constexpr bool kIsScalar = std::is_same_v<E, float> || std::is_same_v<E, double> ||
                                  std::is_same_v<E, Eigen::bfloat16> || std::is_same_v<E, Eigen::half>;

/// The scalar of the sums of attention over arrays of E; also that of an lse and of gradients.
template <class E>
using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;

/// A view of an array of E, or if `is_sum` of an array of Sum<E>.
template <class E>
struct EitherView {
  View<const E> of_scalar;
  View<const Sum<E>> of_sum;
  bool is_sum = false;
};

/// The size of a slope in bytes.
inline Index size_of(SlopeScalar scalar) {
  return scalar == SlopeScalar::float64 ? 8 : scalar == SlopeScalar::float32 ? 4 : 2;
}

/// The slope of head h of sequence b.
inline double slope_at(const SlopeView& slopes, Index b, Index h) {
  const Index at = b * slopes.batch_stride + h * slopes.head_stride;
  switch (slopes.scalar) {
    case SlopeScalar::float64:
      return static_cast<const double*>(slopes.data)[at];
    case SlopeScalar::bfloat16:
      return double(static_cast<const Eigen::bfloat16*>(slopes.data)[at]);
    case SlopeScalar::half:
      return double(static_cast<const Eigen::half*>(slopes.data)[at]);
    default:
      return double(static_cast<const float*>(slopes.data)[at]);
  }
}

}  // namespace detail

/// A view of memory of the caller: sizes [batch, heads, tokens, head_dim], and strides in elements in the same order. A
/// contiguous [batch, tokens, heads, head_dim] array, for example, is
///
///     view(p, {b, h, n, d}, {n * h * d, d, h * d, 1})
///
/// Throws std::invalid_argument for a negative size, sizes whose product overflows, or a head_dim stride that is not 1.
template <class T>
View<T> view(T* data, const std::array<Index, 4>& sizes, const std::array<Index, 4>& strides) {
  for (const Index size : sizes) detail::require(size >= 0, "a size of the view is ", size, "; expected 0 or more");
  detail::checked_product({sizes[0], sizes[1], sizes[2], sizes[3]}, "the view");
  detail::require(strides[3] == 1, "the view's stride of head_dim is ", strides[3],
                  "; expected 1, each token's head_dim contiguous");
  return {data, sizes[0], sizes[1], sizes[2], sizes[3], strides[0], strides[1], strides[2]};
}

/// How an array type becomes a view, and which types own results. Specialised below for View and for Eigen matrices,
/// and in tensor.hpp for Eigen tensors. To support a type of your own, specialise Adapter with the same members:
///
///     Scalar                                          the scalar of the array
///     static View<T> of(array, name)                  T is Scalar, or const Scalar for a const array; `name` is the
///                                                     argument that an error message names
///     Output, static Output output(b, h, n, d)        what attention() returns; not needed for attention_into()
///     Lse,    static Lse lse(b, h, n)                 the lse of attention_with_lse(): has data() and size()
///     Like<T>, static Like<T> like<T>(b, h, n, d)     an array of another scalar: what attention_backward() returns
///
/// b, h, n and d are the batch, heads, tokens and head_dim of the result.
template <class Array>
struct Adapter {
  static_assert(!sizeof(Array),
                "alibi: this type is not an array of attention. Pass an Eigen::Tensor or TensorMap of rank 4 (include "
                "<alibi/tensor.hpp> or <alibi/alibi.hpp>), a row-major Eigen matrix, map or ref of one head, or "
                "alibi::view(pointer, sizes, strides).");
};

/// Views as arrays of attention. They own no memory, so that they have no Output.
template <class T>
struct Adapter<View<T>> {
  using Scalar = std::remove_const_t<T>;  ///< the scalar of the array
  /// x itself.
  static View<T> of(const View<T>& x, const char*) { return x; }
};

/// The Adapter of varlen.hpp, for arrays [tokens, heads, head_dim] of several sequences: views with a batch of 1, and
/// tensors of rank 3. Its members are those of Adapter, without b; an lse is [heads, tokens].
template <class Array>
struct VarlenAdapter {
  static_assert(!sizeof(Array),
                "alibi: this type is not an array of varlen attention. Pass an Eigen::Tensor or TensorMap of rank 3, "
                "[tokens, heads, head_dim] (include <alibi/tensor.hpp> or <alibi/alibi.hpp>), or "
                "alibi::view(pointer, {1, heads, tokens, head_dim}, strides).");
};

/// Views with a batch of 1 as arrays of varlen attention.
template <class T>
struct VarlenAdapter<View<T>> {
  using Scalar = std::remove_const_t<T>;  ///< the scalar of the array
  /// x itself. Throws std::invalid_argument if its batch is not 1.
  static View<T> of(const View<T>& x, const char* name) {
    detail::require(x.batch == 1, name, " has batch ", x.batch, "; expected 1, all sequences side by side");
    return x;
  }
};

namespace detail {

// Overload resolution, because the DenseBase of an Eigen type need not be of the type itself: a VectorBlock is a
// DenseBase<Block>.
template <class Derived>
std::true_type is_dense(const Eigen::DenseBase<Derived>*);
std::false_type is_dense(const void*);
/// Whether Array is an Eigen matrix, array or expression of one.
template <class Array>
inline constexpr bool is_matrix = decltype(is_dense(static_cast<Array*>(nullptr)))::value;

}  // namespace detail

/// Row-major Eigen matrices [tokens, head_dim] as arrays of one head.
template <class Array>
  requires detail::is_matrix<Array>
struct Adapter<Array> {
  using Scalar = typename Array::Scalar;  ///< the scalar of the array
  /// Whether the matrix has memory of its own, unlike an expression.
  static constexpr bool kDirect = bool(Array::Flags & Eigen::DirectAccessBit);
  static_assert(kDirect,
                "alibi: an Eigen expression has no memory of its own. Evaluate it into a row-major matrix first.");
  static_assert(
      bool(Array::IsRowMajor) || !kDirect,
      "alibi: a matrix of one head is [tokens, head_dim] and must be row-major, so that a token's head_dim is "
      "contiguous; Eigen's default is column-major. Declare it Eigen::Matrix<T, Eigen::Dynamic, "
      "Eigen::Dynamic, Eigen::RowMajor>, or keep [head_dim, tokens] and pass x.transpose().");

  /// The matrix as a view of one head. Throws std::invalid_argument for an inner stride that is not 1.
  template <class X>
  static auto of(X& x, const char* name) {
    detail::require(x.innerStride() == 1, name, " is a matrix of inner stride ", x.innerStride(),
                    "; expected 1, each token's head_dim contiguous");
    using T = std::remove_pointer_t<decltype(x.data())>;
    return View<T>{x.data(), 1, 1, x.rows(), x.cols(), 0, 0, x.outerStride()};
  }

  /// A matrix of T.
  template <class T>
  using Like = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  /// A new matrix of T, [tokens, head_dim].
  template <class T>
  static Like<T> like(Index, Index, Index tokens, Index head_dim) {
    return Like<T>(tokens, head_dim);
  }
  using Output = Like<Scalar>;                                        ///< the type of an output
  using Lse = Eigen::Matrix<detail::Sum<Scalar>, Eigen::Dynamic, 1>;  ///< the type of an lse
  /// A new output, [tokens, head_dim].
  static Output output(Index b, Index h, Index tokens, Index head_dim) { return like<Scalar>(b, h, tokens, head_dim); }
  /// A new lse, [tokens].
  static Lse lse(Index, Index, Index tokens) { return Lse(tokens); }
};

namespace detail {

/// A view of slopes of S at `data`.
template <class S>
SlopeView slope_view_of(const S* data, Index batch, Index heads, Index batch_stride, Index head_stride) {
  static_assert(kIsScalar<S>, "alibi: slopes must hold float, double, Eigen::bfloat16 or Eigen::half.");
  constexpr SlopeScalar kScalar = std::is_same_v<S, double>            ? SlopeScalar::float64
                                  : std::is_same_v<S, Eigen::bfloat16> ? SlopeScalar::bfloat16
                                  : std::is_same_v<S, Eigen::half>     ? SlopeScalar::half
                                                                       : SlopeScalar::float32;
  return {data, kScalar, batch, heads, batch_stride, head_stride};
}

}  // namespace detail

/// Slopes as a view. They are a scalar for one head; an Eigen vector, a tensor of rank 1 or a contiguous range [heads];
/// or an Eigen matrix or a tensor of rank 2 [batch, heads] (column-major tensors mirrored). They hold float, double,
/// bfloat16 or half, whatever q holds.
template <class Slopes>
SlopeView slope_view(const Slopes& slopes) {
  using detail::slope_view_of;
  if constexpr (std::is_arithmetic_v<Slopes> || detail::kIsScalar<Slopes>) {
    return slope_view_of(&slopes, 1, 1, 0, 0);
  } else if constexpr (detail::is_matrix<Slopes>) {
    static_assert(bool(Slopes::Flags & Eigen::DirectAccessBit),
                  "alibi: slopes is an Eigen expression; evaluate it into a vector first.");
    if constexpr (bool(Slopes::IsVectorAtCompileTime))
      return slope_view_of(slopes.data(), 1, slopes.size(), 0, slopes.innerStride());
    else
      return slope_view_of(slopes.data(), slopes.rows(), slopes.cols(), slopes.rowStride(), slopes.colStride());
  } else if constexpr (requires { Slopes::NumDimensions; }) {
    static_assert(Slopes::NumDimensions == 1 || Slopes::NumDimensions == 2,
                  "alibi: slopes is a tensor of rank 1, [heads], or 2, [batch, heads].");
    if constexpr (Slopes::NumDimensions == 1) {
      return slope_view_of(slopes.data(), 1, Index(slopes.size()), 0, 1);
    } else {
      constexpr bool kRowMajor = int(Slopes::Layout) == int(Eigen::RowMajor);
      const Index batch = Index(slopes.dimensions()[kRowMajor ? 0 : 1]),
                  heads = Index(slopes.dimensions()[kRowMajor ? 1 : 0]);
      return slope_view_of(slopes.data(), batch, heads, heads, 1);
    }
  } else {
    return slope_view_of(slopes.data(), 1, Index(slopes.size()), 0, 1);
  }
}

/// Makes a new array of T of the sizes of slopes, [heads] or [batch, heads], for their gradient. Specialised in
/// tensor.hpp for Eigen tensors.
template <class T, class Slopes>
struct SlopesLike {
  /// A scalar, an Eigen vector or row-major matrix, or a std::vector, as `slopes` is one.
  static auto make(const Slopes& slopes) {
    if constexpr (std::is_arithmetic_v<Slopes> || detail::kIsScalar<Slopes>) {
      return T(0);
    } else if constexpr (detail::is_matrix<Slopes>) {
      if constexpr (bool(Slopes::IsVectorAtCompileTime))
        return Eigen::Matrix<T, Eigen::Dynamic, 1>(slopes.size());
      else
        return Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>(slopes.rows(), slopes.cols());
    } else {
      return std::vector<T>(std::size_t(slopes.size()));
    }
  }
};

/// A log-sum-exp array [batch, heads, queries], or of varlen attention, rank 2, [heads, queries], as a span. It is an
/// Eigen vector or row-major matrix, a tensor of that rank (column-major: mirrored), or a contiguous range. Throws
/// std::invalid_argument, with `name`, for a matrix with gaps between its entries.
template <class T, int rank = 3, class Lse>
std::span<T> lse_view(Lse& lse, const char* name = "lse") {
  using Held = std::remove_reference_t<decltype(*lse.data())>;
  static_assert(
      std::is_same_v<Held, T> || std::is_same_v<const Held, T>,
      "alibi: lse must hold the scalar of q, k and v, or float where that is bfloat16 or half, and not be const.");
  using Array = std::remove_const_t<Lse>;
  if constexpr (detail::is_matrix<Array>) {
    static_assert(bool(Array::IsVectorAtCompileTime) || bool(Array::IsRowMajor),
                  "alibi: lse is a matrix [heads, queries] and must be row-major; Eigen's default is column-major.");
    const bool dense =
        lse.innerStride() == 1 && (lse.rows() <= 1 || lse.cols() <= 1 || lse.outerStride() == lse.cols());
    detail::require(dense, name, " has gaps between its entries; expected them side by side");
  } else if constexpr (requires { Array::NumDimensions; }) {
    static_assert(Array::NumDimensions == rank,
                  "alibi: lse is a tensor of rank 3, [batch, heads, queries], or for varlen attention of rank 2, "
                  "[heads, queries].");
  }
  return {lse.data(), std::size_t(lse.size())};
}

}  // namespace ALIBI_ABI
}  // namespace alibi
