// A bias that is any function of distance, read from a table: in place of slopes, wherever those are accepted.
//
//   s_ij = τ q_i·k_j + table[h][t]        p_i - j = first + t, held to 0 <= t < entries
//
// A distance beyond either end takes the entry at that end, as the last bucket of T5 does; a mask's window cuts where
// nothing should be seen. A light view: the table stays where it is.
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "alibi/error.hpp"
#include "alibi/view.hpp"

namespace alibi {

/// [heads, entries], entry t of head h at data[h * head_stride + t] for the distance first + t. T is what attention
/// adds up in.
template <class T>
struct RelativeBias {
  using Scalar = T;
  const T* data = nullptr;
  Index heads = 0, entries = 0, head_stride = 0, first = 0;
};

/// Plain attention: no bias, and no gradient of one.
struct NoBias {};
inline constexpr NoBias no_bias;

inline namespace ALIBI_ABI {

/// A row-major Eigen matrix, map or ref, or a row-major tensor of rank 2, [heads, entries], as the bias of distances
/// first, first + 1, ... Throws std::invalid_argument for a table without entries or with gaps between those of a head.
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
