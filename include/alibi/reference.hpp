// The definition of attention, naive, in double: for tests and research, not for speed. It shares no code with the
// kernels.
//
//   s_ij = τ q_i·k_j - m_h |p_i - j|        p_i = i + query_offset, for the keys j that the mask lets query i see
//   o_i  = Σ_j exp(s_ij) v_j / Σ_j exp(s_ij)
//   lse_i = ln Σ_j exp(s_ij)
//
// Cost: batch x heads x queries x keys x (head_dim + value_dim) multiply-adds, one at a time.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/mask.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ISA::reference {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Result {
  Matrix output;        ///< [batch x heads x queries, value_dim], row (b * heads + h) * queries + i
  Eigen::VectorXd lse;  ///< [batch x heads x queries]
};

/// |p - j|
inline Index distance(Index p, Index j) { return p < j ? j - p : p - j; }

/// Whether a query at position p sees key j.
inline bool sees(const Mask& mask, Index p, Index j) {
  return (!mask.causal || j <= p) && (!mask.window || distance(p, j) < *mask.window);
}

template <class T>
double dot(const T* x, const T* y, Index size) {
  double sum = 0;
  for (Index d = 0; d < size; d++) sum += double(x[d]) * double(y[d]);
  return sum;
}

/// One query at position p against keys [keys, head_dim] and values [keys, value_dim] of one head, each given by a
/// pointer and a stride of tokens. Writes the output to o, [value_dim], and returns the lse.
template <class T>
double attend(const T* q, Index p, View<const T> k, View<const T> v, double slope, const Mask& mask, double scale,
              double* o) {
  std::fill_n(o, v.head_dim, 0.0);
  std::vector<Index> visible;
  for (Index j = 0; j < k.tokens; j++)
    if (sees(mask, p, j)) visible.push_back(j);
  if (visible.empty()) return -std::numeric_limits<double>::infinity();

  // The distance where the bias is largest is taken out of the row in integers, which softmax does not see, and goes
  // back into the lse: a position of 2^40 would cost the logits most of their digits.
  const auto nearer = [p](Index a, Index b) { return distance(p, a) < distance(p, b); };
  const auto [nearest, farthest] = std::minmax_element(visible.begin(), visible.end(), nearer);
  const Index common = distance(p, slope >= 0 ? *nearest : *farthest);

  std::vector<double> s;
  s.reserve(visible.size());
  for (const Index j : visible)
    s.push_back(scale * dot(q, k.data + j * k.token_stride, k.head_dim) - slope * double(distance(p, j) - common));

  const double largest = *std::max_element(s.begin(), s.end());
  double sum = 0;
  for (double& x : s) sum += x = std::exp(x - largest);
  for (std::size_t n = 0; n < visible.size(); n++)
    for (Index d = 0; d < v.head_dim; d++) o[d] += s[n] / sum * double(v.data[visible[n] * v.token_stride + d]);
  return largest + std::log(sum) - slope * double(common);
}

/// q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim],
/// slopes [heads] or [batch, heads]: arrays as in view.hpp, of float or double. The default scale is 1 /
/// sqrt(head_dim). Throws std::invalid_argument for shapes that do not fit.
template <class Q, class K, class V, class Slopes>
Result attention(const Q& q_array, const K& k_array, const V& v_array, const Slopes& slopes, const Mask& mask = {},
                 std::optional<double> scale = std::nullopt) {
  using T = typename Adapter<Q>::Scalar;
  const View<const T> q = Adapter<Q>::of(q_array, "q"), k = Adapter<K>::of(k_array, "k"),
                      v = Adapter<V>::of(v_array, "v");
  const SlopeView<T> m = slope_view<T>(slopes);
  detail::require(k.batch == q.batch && v.batch == q.batch && v.heads == k.heads && k.head_dim == q.head_dim &&
                      v.tokens == k.tokens && (k.heads > 0 ? q.heads % k.heads == 0 : q.heads == 0) &&
                      m.heads == q.heads && (m.batch == q.batch || m.batch_stride == 0),
                  "reference: the shapes of q, k, v and slopes do not fit");
  const double tau = scale.value_or(1 / std::sqrt(double(q.head_dim)));
  const Index offset = mask.query_offset.value_or(k.tokens - q.tokens), rows = q.batch * q.heads * q.tokens;

  Result result{Matrix(rows, v.head_dim), Eigen::VectorXd(rows)};
  Index row = 0;
  for (Index b = 0; b < q.batch; b++)
    for (Index h = 0; h < q.heads; h++) {
      const Index kv = h / (q.heads / k.heads);
      View<const T> keys = k, values = v;
      keys.data += b * k.batch_stride + kv * k.head_stride;
      values.data += b * v.batch_stride + kv * v.head_stride;
      for (Index i = 0; i < q.tokens; i++, row++) {
        const T* query = q.data + b * q.batch_stride + h * q.head_stride + i * q.token_stride;
        const double slope = double(m.data[b * m.batch_stride + h * m.head_stride]);
        result.lse[row] =
            attend(query, i + offset, keys, values, slope, mask, tau, result.output.data() + row * v.head_dim);
      }
    }
  return result;
}

}  // namespace alibi::inline ALIBI_ISA::reference
