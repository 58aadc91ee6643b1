// The definition of attention and of its gradients, computed naively in double: for tests and research, not for speed.
// It shares no code with the kernels.
//
//   s_ij = τ q_i·k_j + bias_ij              p_i = i + query_offset, for the keys j that the mask lets query i see
//   o_i  = Σ_j exp(s_ij) v_j / Σ_j exp(s_ij)
//   lse_i = ln Σ_j exp(s_ij)
//
// The bias is -m_h |p_i - j|, or an entry of a table for p_i - j (relative_bias.hpp), or none. m_h may differ between
// the keys before and after a query (two_sided.hpp), and positions may replace p_i and j in the bias
// (token_positions.hpp).
//
// Cost: batch x heads x queries x keys x (head_dim + value_dim) multiply-adds, one at a time; three times that for the
// gradients.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/mask.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/two_sided.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI::reference {

/// A row-major matrix of double.
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The result of reference::attention().
struct Result {
  Matrix output;        ///< [batch x heads x queries, value_dim], row (b * heads + h) * queries + i
  Eigen::VectorXd lse;  ///< [batch x heads x queries], natural logarithm
};

/// The result of reference::attention_backward().
struct Gradients {
  Matrix q;     ///< [batch x heads x queries, head_dim], row (b * heads + h) * queries + i
  Matrix k,     ///< [batch x kv_heads x keys, head_dim], row (b * kv_heads + h) * keys + j
      v;        ///< [batch x kv_heads x keys, value_dim], row (b * kv_heads + h) * keys + j
  Matrix bias;  ///< [batch, heads] of slopes; [heads, entries] of a table, summed over the batch; empty for no_bias
  Matrix after = {};          ///< [batch, heads] of the slopes after a query, if the bias is two-sided or has positions
  Matrix key_positions = {},  ///< [batch x heads, keys], if the bias has positions
      query_positions = {};   ///< [batch x heads, queries], if the bias has positions
};

/// The distance |p - j| of key j from position p.
inline Index distance(Index p, Index j) { return p < j ? j - p : p - j; }

/// Whether a query at position p sees key j.
inline bool sees(const Mask& mask, Index p, Index j) {
  return (!mask.causal || j <= p || j < mask.prefix) &&
         (!mask.window || distance(p, j) < *mask.window || j < mask.sinks.value_or(0));
}

/// x·y over `size` numbers.
template <class T, class U>
double dot(const T* x, const U* y, Index size) {
  double sum = 0;
  for (Index d = 0; d < size; d++) sum += double(x[d]) * double(y[d]);
  return sum;
}

/// y += a x over `size` numbers.
template <class T>
void add(double a, const T* x, Index size, double* y) {
  for (Index d = 0; d < size; d++) y[d] += a * double(x[d]);
}

/// Token i of head h of batch entry b.
template <class T>
T* token(const View<T>& x, Index b, Index h, Index i) {
  return x.data + b * x.batch_stride + h * x.head_stride + i * x.token_stride;
}

/// The bias -m |p - j| of one head.
///
/// The origin of a row is the distance of the visible key whose bias is largest. It is subtracted from all distances of
/// the row, in integers, because a position of 2^40 would cost the logits most of their digits. Softmax ignores the
/// subtraction, and the lse adds it back. The gradient ignores it too, since Σ_j dS_ij = 0; with a gradient of the lse
/// the sum is dlse_i, and the origin is added back.
struct SlopeOfHead {
  double m;  ///< the slope

  /// The origin of the row of position p with these visible keys, at least one.
  Index origin(Index p, const std::vector<Index>& keys) const {
    const auto nearer = [p](Index a, Index b) { return distance(p, a) < distance(p, b); };
    const auto [nearest, farthest] = std::minmax_element(keys.begin(), keys.end(), nearer);
    return distance(p, m >= 0 ? *nearest : *farthest);
  }
  /// The bias at the origin.
  double at_origin(Index origin) const { return -m * double(origin); }
  /// The bias of key j relative to that at the origin.
  double beyond(Index origin, Index p, Index j) const { return -m * double(distance(p, j) - origin); }
  /// dm -= dS |p - j|
  void add_gradient(double ds, Index origin, Index p, Index j, double* dm) const {
    *dm -= ds * double(distance(p, j) - origin);
  }
  /// dm -= dlse origin
  void add_origin_gradient(double dlse, Index origin, double* dm) const { *dm -= dlse * double(origin); }
};

/// The bias of one head from its row of a table. It needs no origin.
template <class T>
struct TableOfHead {
  const T* entry;  ///< [entries]
  Index entries,   ///< the number of entries
      first;       ///< the distance p - j of the first entry

  /// The entry for position p and key j: that of distance p - j, or the nearest one.
  Index at(Index p, Index j) const { return std::clamp<Index>(p - j - first, 0, entries - 1); }
  /// 0
  Index origin(Index, const std::vector<Index>&) const { return 0; }
  /// 0
  double at_origin(Index) const { return 0; }
  /// The bias of key j.
  double beyond(Index, Index p, Index j) const { return double(entry[at(p, j)]); }
  /// dtable[t] += dS, where t is the entry for p and j.
  void add_gradient(double ds, Index, Index p, Index j, double* dtable) const { dtable[at(p, j)] += ds; }
  /// Does nothing: the table has no origin.
  void add_origin_gradient(double, Index, double*) const {}
};

/// The bias of one query from two-sided slopes and, if there are any, positions.
///
/// The origin of a row is the visible key with the largest bias, which is subtracted from the others.
struct PositionsOfQuery {
  double before, after;  ///< the slopes; infinite for a side that is hidden
  PositionView keys;     ///< [keys], of the head; null: indices
  double query;          ///< c_i; with indices, p_i
  Index head;            ///< of `keys`
  Index batch;           ///< of `keys`

  /// Whether the key is on the left: before the query, or at its position with an index that is not above its index.
  bool is_left(Index p, Index j) const {
    if (!keys.data) return j <= p;
    const double c = at(j);
    return c < query || (c == query && j <= p);
  }
  /// Whether the slopes let the query see key j.
  bool sees(Index p, Index j) const { return j == p || std::isfinite(is_left(p, j) ? before : after); }
  /// The position of a key.
  double at(Index j) const { return keys(batch, keys.heads > 1 ? head : 0, j); }
  /// |c_i - c_j|
  double apart(Index p, Index j) const { return keys.data ? std::abs(query - at(j)) : double(distance(p, j)); }
  /// The bias of key j.
  double of(Index p, Index j) const {
    const double d = apart(p, j);
    return d == 0 ? 0 : -(is_left(p, j) ? before : after) * d;
  }
  /// The visible key with the largest bias.
  Index origin(Index p, const std::vector<Index>& visible) const {
    return *std::max_element(visible.begin(), visible.end(), [&](Index a, Index b) { return of(p, a) < of(p, b); });
  }
  /// |c_i - c_j| less that of the origin, a key on the same side. No large number enters it.
  double farther(Index origin, Index p, Index j) const {
    const double ahead = keys.data ? at(j) - at(origin) : double(j - origin);
    return is_left(p, j) ? -ahead : ahead;
  }
  /// The bias of key j relative to that of the origin.
  double beyond(Index origin, Index p, Index j) const {
    if (is_left(p, j) != is_left(p, origin)) return of(p, j) - of(p, origin);
    const double d = farther(origin, p, j);
    return d == 0 ? 0 : -(is_left(p, j) ? before : after) * d;
  }
};

/// The slopes of all heads, and where their gradients go.
struct Slopes {
  SlopeView m;  ///< [heads] or [batch, heads]

  /// Whether the sizes fit.
  bool fit(Index batch, Index heads) const { return m.heads == heads && (m.batch == batch || m.batch_stride == 0); }
  /// The bias of head h of batch entry b.
  SlopeOfHead head(Index b, Index h) const { return {alibi::detail::slope_at(m, b, h)}; }
  /// A gradient [batch, heads] of zeros.
  Matrix no_gradient(Index batch) const { return Matrix::Zero(batch, m.heads); }
  /// The part of the gradient that belongs to a head.
  double* gradient(Matrix& bias, Index b, Index h) const { return &bias(b, h); }
};

/// The table of all heads, and where its gradient goes.
template <class T>
struct Table {
  RelativeBias<T> table;  ///< [heads, entries]

  /// Whether the sizes fit.
  bool fit(Index, Index heads) const { return table.heads == heads && table.entries >= 1; }
  /// The bias of head h.
  TableOfHead<T> head(Index, Index h) const { return {table.data + h * table.head_stride, table.entries, table.first}; }
  /// A gradient [heads, entries] of zeros.
  Matrix no_gradient(Index) const { return Matrix::Zero(table.heads, table.entries); }
  /// The part of the gradient that belongs to a head.
  double* gradient(Matrix& bias, Index, Index h) const { return &bias(h, 0); }
};

/// Two-sided slopes and positions of all heads.
struct PositionBiases {
  SlopeView before, after;         ///< [heads] or [batch, heads]
  PositionView keys{}, queries{};  ///< [tokens], [heads, tokens] or [batch, heads, tokens]; null: indices

  /// Whether the sizes fit.
  bool fit(Index batch, Index heads) const {
    return Slopes{before}.fit(batch, heads) && Slopes{after}.fit(batch, heads);
  }
  /// The bias of query i, of index p among the keys, of head h of batch entry b.
  PositionsOfQuery query(Index b, Index h, Index i, Index p) const {
    const double c = queries.data ? queries(b, queries.heads > 1 ? h : 0, i) : double(p);
    return {alibi::detail::slope_at(before, b, h), alibi::detail::slope_at(after, b, h), keys, c, h, b};
  }
  /// A gradient [batch, heads] of zeros.
  Matrix no_gradient(Index batch) const { return Matrix::Zero(batch, before.heads); }
};

/// The bias from two-sided slopes.
template <class T, class Before, class After>
PositionBiases bias_of(const TwoSidedSlopes<Before, After>& slopes, Index) {
  return {slope_view(slopes.before), slope_view(slopes.after)};
}
/// The bias from positions.
template <class T, class M, class Keys, class Queries>
PositionBiases bias_of(const TokenPositions<M, Keys, Queries>& positions, Index heads) {
  PositionBiases bias;
  if constexpr (alibi::detail::kIsTwoSided<std::remove_cvref_t<M>>)
    bias = bias_of<T>(positions.slopes, heads);
  else
    bias = {slope_view(positions.slopes), slope_view(positions.slopes)};
  bias.keys = bias.queries = position_view(positions.keys);
  if constexpr (!std::is_void_v<Queries>) bias.queries = position_view(positions.queries);
  return bias;
}
/// The bias from slopes, as slope_view() takes them.
template <class T, class S>
Slopes bias_of(const S& slopes, Index) {
  return {slope_view(slopes)};
}
/// The bias from a table.
template <class T>
Table<T> bias_of(const RelativeBias<T>& table, Index) {
  return {table};
}
/// No bias: slopes of 0.
template <class T>
Slopes bias_of(const NoBias&, Index heads) {
  static constexpr float kZero = 0;
  return {{&kZero, SlopeScalar::float32, 1, heads, 0, 0}};
}

/// The softmax of one query.
struct Row {
  std::vector<Index> keys;                                ///< the visible keys, rising
  std::vector<double> p;                                  ///< the softmax of their logits
  Index origin = 0;                                       ///< the origin of the bias (SlopeOfHead)
  double lse = -std::numeric_limits<double>::infinity();  ///< ln Σ_j exp(s_ij); -inf if no key is visible
};

/// The softmax of query q [head_dim] at position p over keys k [keys, head_dim] of one head, the first of the view.
template <class T, class Bias>
Row softmax(const T* q, Index p, const View<const T>& k, const Bias& bias, const Mask& mask, double scale) {
  Row row;
  for (Index j = 0; j < k.tokens; j++) {
    if constexpr (requires { bias.sees(p, j); })
      if (!bias.sees(p, j)) continue;
    if (sees(mask, p, j)) row.keys.push_back(j);
  }
  if (row.keys.empty()) return row;

  row.origin = bias.origin(p, row.keys);
  for (const Index j : row.keys)
    row.p.push_back(scale * dot(q, k.data + j * k.token_stride, k.head_dim) + bias.beyond(row.origin, p, j));
  const double largest = *std::max_element(row.p.begin(), row.p.end());
  double sum = 0;
  for (double& x : row.p) sum += x = std::exp(x - largest);
  for (double& x : row.p) x /= sum;
  if constexpr (requires { bias.of(p, row.origin); })
    row.lse = largest + std::log(sum) + bias.of(p, row.origin);
  else
    row.lse = largest + std::log(sum) + bias.at_origin(row.origin);
  return row;
}

/// Writes Σ_j p_j v_j to o [value_dim], for values v [keys, value_dim] of one head.
template <class T>
void mean(const Row& row, const View<const T>& v, double* o) {
  std::fill_n(o, v.head_dim, 0.0);
  for (std::size_t n = 0; n < row.keys.size(); n++) add(row.p[n], v.data + row.keys[n] * v.token_stride, v.head_dim, o);
}

/// softmax() and mean() of one query for a slope. Writes the output to o [value_dim] and returns the lse.
template <class T>
double attend(const T* q, Index p, View<const T> k, View<const T> v, double slope, const Mask& mask, double scale,
              double* o) {
  const Row row = softmax(q, p, k, SlopeOfHead{slope}, mask, scale);
  mean(row, v, o);
  return row.lse;
}

/// A mask of its own for each entry of the batch, [batch]: what Options::query_offsets and prefixes mean.
struct MasksOfBatch {
  std::vector<Mask> masks;  ///< [batch]

  /// From masks [batch].
  explicit MasksOfBatch(std::vector<Mask> of_each) : masks(std::move(of_each)) {}
  /// The same mask for all entries.
  MasksOfBatch(const Mask& mask, Index batch) : masks(std::size_t(batch), mask) {}
};

/// The inputs of a call, of one scalar.
template <class T, class Bias>
struct Inputs {
  View<const T> q,     ///< [batch, heads, queries, head_dim]
      k,               ///< [batch, kv_heads, keys, head_dim]
      v;               ///< [batch, kv_heads, keys, value_dim]
  Bias bias;           ///< Slopes or Table
  MasksOfBatch masks;  ///< which keys a query sees
  double scale;        ///< τ

  /// The kv head that query head h reads.
  Index kv_head(Index h) const { return h / (q.heads / k.heads); }
  /// The mask of batch entry b.
  const Mask& mask(Index b) const { return masks.masks[std::size_t(b)]; }
  /// The position of query i of batch entry b among the keys.
  Index position(Index b, Index i) const { return i + mask(b).query_offset.value_or(k.tokens - q.tokens); }
  /// The part of x, which is k or v, that query head h of batch entry b reads, as the first head of a view.
  View<const T> of_kv_head(View<const T> x, Index b, Index h) const {
    x.data = token(x, b, kv_head(h), 0);
    return x;
  }
  /// The softmax of query i of head h of batch entry b.
  Row row(Index b, Index h, Index i) const {
    const auto of_row = [&](const auto& bias_of_row) {
      return softmax(token(q, b, h, i), position(b, i), of_kv_head(k, b, h), bias_of_row, mask(b), scale);
    };
    if constexpr (requires { bias.query(b, h, i, position(b, i)); })
      return of_row(bias.query(b, h, i, position(b, i)));
    else
      return of_row(bias.head(b, h));
  }
  /// Writes the output of a row of head h of batch entry b to o [value_dim].
  void mean(const Row& row, Index b, Index h, double* o) const { reference::mean(row, of_kv_head(v, b, h), o); }

  /// Calls body(number, b, h, i) for every query; `number` is that of its row in a Result.
  template <class Body>
  void for_each_row(Body body) const {
    Index number = 0;
    for (Index b = 0; b < q.batch; b++)
      for (Index h = 0; h < q.heads; h++)
        for (Index i = 0; i < q.tokens; i++) body(number++, b, h, i);
  }
};

/// The inputs of a call as views. Throws std::invalid_argument for shapes that do not fit.
template <class Q, class K, class V, class Biases>
auto inputs(const Q& q_array, const K& k_array, const V& v_array, const Biases& biases, MasksOfBatch masks,
            std::optional<double> scale) {
  using T = typename Adapter<Q>::Scalar;
  const View<const T> q = Adapter<Q>::of(q_array, "q"), k = Adapter<K>::of(k_array, "k"),
                      v = Adapter<V>::of(v_array, "v");
  const auto bias = bias_of<T>(biases, q.heads);
  detail::require(k.batch == q.batch && v.batch == q.batch && v.heads == k.heads && k.head_dim == q.head_dim &&
                      v.tokens == k.tokens && (k.heads > 0 ? q.heads % k.heads == 0 : q.heads == 0) &&
                      bias.fit(q.batch, q.heads) && Index(masks.masks.size()) == q.batch,
                  "reference: the shapes of q, k, v and slopes, table or masks do not fit");
  return Inputs<T, std::remove_const_t<decltype(bias)>>{
      q, k, v, bias, std::move(masks), scale.value_or(1 / std::sqrt(double(q.head_dim)))};
}

/// Attention by its definition (Press et al., arXiv 2108.12409, section 3).
///
///     s_ij = τ q_i·k_j + bias_ij      o_i = Σ_j softmax_j(s_ij) v_j      lse_i = ln Σ_j exp(s_ij)
///
/// q is [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim].
/// biases are slopes [heads] or [batch, heads], two_sided() slopes, positions(), a relative_bias() or no_bias. Arrays
/// are those of view.hpp, of float or double. The default scale τ is 1 / sqrt(head_dim). Throws std::invalid_argument
/// for shapes that do not fit.
template <class Q, class K, class V, class Biases>
Result attention(const Q& q, const K& k, const V& v, const Biases& biases, const MasksOfBatch& masks,
                 std::optional<double> scale = std::nullopt) {
  const auto in = inputs(q, k, v, biases, masks, scale);
  const Index rows = in.q.batch * in.q.heads * in.q.tokens;
  Result result{Matrix(rows, in.v.head_dim), Eigen::VectorXd(rows)};
  in.for_each_row([&](Index number, Index b, Index h, Index i) {
    const Row row = in.row(b, h, i);
    in.mean(row, b, h, result.output.data() + number * in.v.head_dim);
    result.lse[number] = row.lse;
  });
  return result;
}

/// attention() with one mask for the whole batch.
template <class Q, class K, class V, class Biases>
Result attention(const Q& q, const K& k, const V& v, const Biases& biases, const Mask& mask = {},
                 std::optional<double> scale = std::nullopt) {
  return attention(q, k, v, biases, MasksOfBatch(mask, Adapter<Q>::of(q, "q").batch), scale);
}

/// The origin of a row if all its visible keys are on one side of the query; otherwise -1.
inline Index one_sided_origin(const PositionsOfQuery& bias, Index p, const Row& row) {
  for (const Index j : row.keys)
    if (bias.is_left(p, j) != bias.is_left(p, row.origin)) return -1;
  return row.origin;
}
/// |c_i - c_j|, without the distance of the origin if the row has one: Σ_j dS_ij = dlse_i, by which
/// add_origin_gradient() multiplies it.
inline double distance_beyond(const PositionsOfQuery& bias, Index origin, Index p, Index j) {
  return origin < 0 ? bias.apart(p, j) : bias.farther(origin, p, j);
}

/// Adds what the pair of a query and key j, with this dS_ij, adds to the gradients of two-sided slopes and positions.
/// At the same position a key counts as before the query if its index does (PositionsOfQuery::is_left).
///
///     db = -Σ dS_ij (c_i - c_j), before      dc_i = -Σ_j g_ij      g_ij = b dS_ij before
///     da = -Σ dS_ij (c_j - c_i), after       dc_j = Σ_i g_ij             -a dS_ij after
///
/// `origin` is one_sided_origin().
inline void add_position_gradients(const PositionsOfQuery& bias, double ds, Index origin, Index b, Index h, Index heads,
                                   Index i, Index p, Index j, Gradients& grad) {
  const bool left = bias.is_left(p, j);
  (left ? grad.bias : grad.after)(b, h) -= ds * distance_beyond(bias, origin, p, j);
  if (!bias.keys.data) return;
  const double g = ds * (left ? bias.before : -bias.after);
  grad.query_positions(b * heads + h, i) -= g;
  grad.key_positions(b * heads + h, j) += g;
}

/// Adds dlse times the distance of the origin, if the row has one.
inline void add_origin_gradient(const PositionsOfQuery& bias, double dlse, Index origin, Index b, Index h, Index p,
                                Gradients& grad) {
  if (origin >= 0) (bias.is_left(p, origin) ? grad.bias : grad.after)(b, h) -= dlse * bias.apart(p, origin);
}

/// The gradients of f, any function of the output and the lse, for grad_output dO = ∂f/∂o, [batch, heads, queries,
/// value_dim], of any array type and scalar, and grad_lse dlse = ∂f/∂lse, [batch, heads, queries]; empty: 0. A query
/// that sees no key has no gradient. The other arguments and the errors are those of attention().
///
///     dP_ij = dO_i·v_j      D_i = dO_i·o_i - dlse_i      dS_ij = P_ij (dP_ij - D_i)
///     dV_j = Σ_i P_ij dO_i  dQ_i = τ Σ_j dS_ij k_j  dK_j = τ Σ_i dS_ij q_i  dm = -Σ_ij dS_ij |p_i - j|
///
/// The gradient of an entry of a table is the sum of dS_ij over the pairs that read it. The gradients of k and v are
/// summed over all query heads that share them.
template <class O, class Q, class K, class V, class Biases>
Gradients attention_backward(const O& grad_output, const Q& q, const K& k, const V& v, const Biases& biases,
                             const MasksOfBatch& masks, std::optional<double> scale = std::nullopt,
                             std::span<const double> grad_lse = {}) {
  const auto in = inputs(q, k, v, biases, masks, scale);
  const View<const typename Adapter<O>::Scalar> dO = Adapter<O>::of(grad_output, "grad_output");
  detail::require(
      dO.batch == in.q.batch && dO.heads == in.q.heads && dO.tokens == in.q.tokens && dO.head_dim == in.v.head_dim,
      "reference: the shape of grad_output does not fit");
  detail::require(grad_lse.empty() || Index(grad_lse.size()) == in.q.batch * in.q.heads * in.q.tokens,
                  "reference: the size of grad_lse does not fit");
  const Index kv_rows = in.k.batch * in.k.heads * in.k.tokens, dim = in.q.head_dim, value_dim = in.v.head_dim;
  Gradients grad{Matrix::Zero(in.q.batch * in.q.heads * in.q.tokens, dim), Matrix::Zero(kv_rows, dim),
                 Matrix::Zero(kv_rows, value_dim), in.bias.no_gradient(in.q.batch)};
  if constexpr (requires { in.bias.after; }) {
    grad.after = in.bias.no_gradient(in.q.batch);
    grad.key_positions = Matrix::Zero(in.q.batch * in.q.heads, in.k.tokens);
    grad.query_positions = Matrix::Zero(in.q.batch * in.q.heads, in.q.tokens);
  }
  std::vector<double> o(std::size_t(value_dim), 0.0);
  in.for_each_row([&](Index number, Index b, Index h, Index i) {
    const Row row = in.row(b, h, i);
    in.mean(row, b, h, o.data());
    const auto* dO_i = token(dO, b, h, i);
    const double dlse = grad_lse.empty() ? 0 : grad_lse[std::size_t(number)];
    const double D = dot(dO_i, o.data(), value_dim) - dlse;
    const Index kv = in.kv_head(h), first_key = (b * in.k.heads + kv) * in.k.tokens;
    [[maybe_unused]] Index origin = -1;
    if constexpr (requires { in.bias.query(b, h, i, i); })
      origin = one_sided_origin(in.bias.query(b, h, i, in.position(b, i)), in.position(b, i), row);
    for (std::size_t n = 0; n < row.keys.size(); n++) {
      const Index j = row.keys[n];
      const double dP = dot(dO_i, token(in.v, b, kv, j), value_dim), ds = row.p[n] * (dP - D);
      add(row.p[n], dO_i, value_dim, grad.v.data() + (first_key + j) * value_dim);
      add(in.scale * ds, token(in.k, b, kv, j), dim, grad.q.data() + number * dim);
      add(in.scale * ds, token(in.q, b, h, i), dim, grad.k.data() + (first_key + j) * dim);
      if constexpr (requires { in.bias.query(b, h, i, i); })
        add_position_gradients(in.bias.query(b, h, i, in.position(b, i)), ds, origin, b, h, in.q.heads, i,
                               in.position(b, i), j, grad);
      else
        in.bias.head(b, h).add_gradient(ds, row.origin, in.position(b, i), j, in.bias.gradient(grad.bias, b, h));
    }
    if (row.keys.empty()) return;
    if constexpr (requires { in.bias.query(b, h, i, i); })
      add_origin_gradient(in.bias.query(b, h, i, in.position(b, i)), dlse, origin, b, h, in.position(b, i), grad);
    else
      in.bias.head(b, h).add_origin_gradient(dlse, row.origin, in.bias.gradient(grad.bias, b, h));
  });
  if constexpr (std::is_same_v<Biases, NoBias>) grad.bias.resize(0, 0);
  return grad;
}

/// attention_backward() with one mask for the whole batch.
template <class O, class Q, class K, class V, class Biases>
Gradients attention_backward(const O& grad_output, const Q& q, const K& k, const V& v, const Biases& biases,
                             const Mask& mask = {}, std::optional<double> scale = std::nullopt,
                             std::span<const double> grad_lse = {}) {
  return attention_backward(grad_output, q, k, v, biases, MasksOfBatch(mask, Adapter<Q>::of(q, "q").batch), scale,
                            grad_lse);
}

}  // namespace alibi::inline ALIBI_ABI::reference
