// A bias that is any function of the distance, read from a table. It replaces slopes in every call that accepts them.
//
//   s_ij = τ q_i·k_j + table[h][t]        t = p_i - j - first, clamped to 0 <= t < entries
//
// A distance beyond either end takes the entry at that end, as in the last bucket of T5. To hide distant keys, use the
// window of the mask. RelativeBias is a light view: the table is not copied and must outlive it.
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// A view of a table [heads, entries]. Entry t of head h, at data[h * head_stride + t], is the bias of distance
/// p_i - j = first + t. T is the scalar of the sums: double for double, float for float, bfloat16 and half.
template <class T>
struct RelativeBias {
  using Scalar = T;         ///< the scalar of the table
  const T* data = nullptr;  ///< entry 0 of head 0
  Index heads = 0,          ///< the number of heads
      entries = 0,          ///< the number of entries of each head
      head_stride = 0,      ///< from one head to the next, in entries
      first = 0;            ///< the distance p_i - j of entry 0
};

/// The type of no_bias.
struct NoBias {};
/// In place of slopes: plain attention, without a bias and without its gradient.
inline constexpr NoBias no_bias;

inline namespace ALIBI_ABI {

/// A table [heads, entries] as the bias of distances first, first + 1, …. It is a row-major Eigen matrix, map or ref,
/// or a row-major tensor of rank 2. Throws std::invalid_argument for a table without entries, or with gaps between the
/// entries of a head.
template <class Table>
auto relative_bias(const Table& table, Index first = 0) {
  using T = std::remove_const_t<typename Table::Scalar>;
  RelativeBias<T> bias{.first = first};
  if constexpr (detail::is_matrix<Table>) {
    static_assert(bool(Table::Flags & Eigen::DirectAccessBit),
                  "alibi: the table is an Eigen expression; evaluate it into a row-major matrix first.");
    static_assert(bool(Table::IsRowMajor),
                  "alibi: a table is [heads, entries] and must be row-major, so that the entries of a head are "
                  "contiguous; Eigen's default is column-major. Declare it Eigen::Matrix<T, Eigen::Dynamic, "
                  "Eigen::Dynamic, Eigen::RowMajor>.");
    detail::require(table.innerStride() == 1, "the table is a matrix of inner stride ", table.innerStride(),
                    "; expected 1, the entries of a head side by side");
    bias.data = table.data(), bias.heads = table.rows(), bias.entries = table.cols();
    bias.head_stride = table.outerStride();
  } else {
    static_assert(
        requires { Table::NumDimensions; },
        "alibi: a table is a row-major Eigen matrix, map or ref, or a row-major tensor of rank 2, [heads, "
        "entries].");
    static_assert(Table::NumDimensions == 2, "alibi: a table is a tensor of rank 2, [heads, entries].");
    static_assert(
        requires { table.data(); }, "alibi: the table is a tensor expression; evaluate it into a tensor first.");
    static_assert(int(Table::Layout) == int(Eigen::RowMajor),
                  "alibi: a table is [heads, entries] and must be row-major, so that the entries of a head are "
                  "contiguous; Eigen's default is column-major. Declare it Eigen::Tensor<T, 2, Eigen::RowMajor>.");
    bias.data = table.data(), bias.heads = Index(table.dimensions()[0]), bias.entries = Index(table.dimensions()[1]);
    bias.head_stride = bias.entries;
  }
  detail::require(bias.entries >= 1, "the table has ", bias.entries, " entries; expected at least 1");
  return bias;
}

}  // namespace ALIBI_ABI
}  // namespace alibi
