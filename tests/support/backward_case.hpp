// A random call of the backward pass from a seed, its gradients by the reference, and the scale of their rounding
// errors.
#pragma once

#include <alibi/backward.hpp>
#include <alibi/reference.hpp>
#include <alibi/relative_bias.hpp>
#include <array>
#include <cstdlib>
#include <optional>
#include <span>
#include <utility>

#include "forward_case.hpp"

namespace test {

using alibi::reference::Gradients;

/// A bias of any kind that owns its memory.
template <class T>
struct Bias {
  enum class Kind { kSlopes, kSlopesOfHeads, kTable, kNone, kTwoSided, kPositions, kSharedPositions };

  Kind kind = Kind::kNone;
  RowMatrix<T> numbers = {};                ///< [batch, heads], [1, heads], [heads, entries], or empty
  Index first = 0;                          ///< the first distance of a table
  RowMatrix<T> after = {};                  ///< of two-sided slopes and of positions of their own
  Tensor3<double> keys = {}, queries = {};  ///< positions [1 or batch, 1 or heads, tokens]
  bool any_order = false;                   ///< whether positions may decrease

  /// Calls body() with the bias in the form that attention takes.
  template <class Body>
  auto visit(Body body) const {
    if (kind == Kind::kSlopes) return body(numbers);
    if (kind == Kind::kSlopesOfHeads) return body(Vector<T>(numbers.row(0)));
    if (kind == Kind::kTable) return body(alibi::relative_bias(numbers, first));
    if (kind == Kind::kTwoSided) return body(alibi::two_sided(numbers, after));
    if (kind == Kind::kSharedPositions)
      return body(any_order ? alibi::positions_in_any_order(numbers, keys) : alibi::positions(numbers, keys));
    if (kind == Kind::kPositions) {
      const auto slopes = alibi::two_sided(numbers, after);
      return body(any_order ? alibi::positions_in_any_order(slopes, keys, queries)
                            : alibi::positions(slopes, keys, queries));
    }
    return body(alibi::no_bias);
  }
  Bias<double> in_double() const {
    return {Bias<double>::Kind(int(kind)),
            numbers.template cast<double>(),
            first,
            after.template cast<double>(),
            keys,
            queries,
            any_order};
  }
  /// Converts a reference gradient of slopes [batch, heads] to the shape of `numbers`.
  alibi::reference::Matrix shaped(const alibi::reference::Matrix& gradient) const {
    return kind == Kind::kSlopesOfHeads ? gradient.colwise().sum() : gradient;
  }
};

/// Positions [1 or batch, 1 or heads, tokens] with gaps of one kind, in order. No gap is above 2^largest.
inline Tensor3<double> random_positions(Random& random, Index batch, Index heads, Index tokens, double largest = 30) {
  Tensor3<double> positions(random.chance(0.5) ? batch : 1, random.chance(0.5) ? heads : 1, tokens);
  const Index kind = random.integer(0, 5);
  const double start = random.chance(0.3) ? 1e9 * random.normal() : 0, far = std::exp2(random.uniform(0, largest));
  for (Index row = 0; row < positions.dimension(0) * positions.dimension(1); row++) {
    double at = std::round(start);
    for (Index i = 0; i < tokens; i++) {
      positions.data()[row * tokens + i] = at;
      const double x = random.uniform(0, 1);
      const double gaps[] = {1, std::round(x), -std::log(1 - x) / 8, x < 0.03 ? far : 1, x < 0.7 ? 0 : x, 20 * x};
      at += gaps[kind];
    }
  }
  return positions;
}

/// Two-sided slopes that hide a side now and then, or positions of one of the forms.
template <class T>
Bias<T> random_position_bias(Random& random, const Shape& s, const RowMatrix<T>& slopes, double largest = 30) {
  using Kind = typename Bias<T>::Kind;
  const Index heads = s.kv_heads * s.group;
  Bias<T> bias{random.chance(0.4) ? Kind::kTwoSided : Kind::kPositions, slopes.cwiseAbs()};
  bias.after = bias.numbers;
  for (Index i = 0; i < bias.after.size(); i++) bias.after.data()[i] *= T(std::exp2(random.uniform(-3, 3)));
  if (bias.kind == Kind::kTwoSided) {
    for (RowMatrix<T>* side : {&bias.numbers, &bias.after})
      for (Index i = 0; i < side->size(); i++)
        if (random.chance(0.15)) side->data()[i] = std::numeric_limits<T>::infinity();
    return bias;
  }
  bias.keys = bias.queries = random_positions(random, s.batch, heads, s.keys, largest);
  if (s.queries == s.keys && random.chance(0.6)) {
    bias.kind = Kind::kSharedPositions;
  } else {
    // Those of the last keys, or others.
    const bool others = s.queries > s.keys || random.chance(0.3);
    bias.queries = random_positions(random, s.batch, heads, s.queries, largest);
    if (!others && bias.keys.dimension(0) * bias.keys.dimension(1) == 1)
      for (Index row = 0; row < bias.queries.size() / std::max<Index>(s.queries, 1); row++)
        std::copy_n(bias.keys.data() + s.keys - s.queries, s.queries, bias.queries.data() + row * s.queries);
  }
  if (random.chance(0.15)) {
    bias.any_order = true;
    for (Tensor3<double>* x : {&bias.keys, &bias.queries})
      for (Index i = 0; i < x->size(); i++) std::swap(x->data()[i], x->data()[random.integer(0, x->size() - 1)]);
    if (bias.kind == Kind::kSharedPositions) bias.queries = bias.keys;
  }
  return bias;
}

template <class T>
Bias<T> random_bias(Random& random, const Shape& s, const RowMatrix<T>& slopes) {
  using Kind = typename Bias<T>::Kind;
  const Index heads = s.kv_heads * s.group;
  switch (random.integer(0, 6)) {
    case 0:
      return {Kind::kNone};
    case 5:
    case 6:
      return random_position_bias(random, s, slopes);
    case 1: {
      Bias<T> table{Kind::kTable, random.matrix<T>(heads, random.integer(1, s.keys + 20), random.uniform(0, 3)),
                    random.integer(-s.keys - 5, 10)};
      return table;
    }
    case 2:
      if (slopes.rows() > 0) return {Kind::kSlopesOfHeads, slopes.topRows(1)};
      [[fallthrough]];
    default:
      return {Kind::kSlopes, slopes};
  }
}

/// The arrays of a call, contiguous and in double, and the reference results.
struct Exact {
  Tensor4<double> grad_output, q, k, v;
  Bias<double> bias;
  alibi::reference::MasksOfBatch masks;
  double scale;
  std::vector<double> grad_lse = {};  // [batch, heads, queries]; empty: 0

  alibi::reference::Result forward() const {
    return bias.visit([&](const auto& b) { return alibi::reference::attention(q, k, v, b, masks, scale); });
  }
  Gradients backward() const {
    return bias.visit([&](const auto& b) {
      Gradients grad = alibi::reference::attention_backward(grad_output, q, k, v, b, masks, scale, grad_lse);
      grad.bias = bias.shaped(grad.bias);
      shape_positions(grad);
      return grad;
    });
  }

  /// The sums that define the gradients, with every term by absolute value, those of dP_ij and D_i too. Rounding causes
  /// an error of a few units in the last place of these sums. It is not proportional to the gradients, which may cancel
  /// to 0.
  ///
  /// The term of a slope counts |p_i - j| from the row's origin, as the reference does, plus 1, because the kernel
  /// chooses the origin. The gradient of the lse counts the origin too.
  Gradients magnitudes() const {
    return bias.visit([&](const auto& b) {
      Gradients sums = magnitudes_of(alibi::reference::inputs(q, k, v, b, masks, scale));
      sums.bias = bias.shaped(sums.bias);
      shape_positions(sums);
      return sums;
    });
  }

 private:
  /// Sums the gradients of positions [batch x heads, tokens] over what shares them, and those of shared positions and
  /// of one slope for both sides.
  void shape_positions(Gradients& grad) const {
    using Kind = Bias<double>::Kind;
    const Index heads = q.dimension(1);
    const auto sum = [&](const alibi::reference::Matrix& all, const Tensor3<double>& like) {
      const Index of_batch = like.dimension(0) > 1, of_heads = like.dimension(1) > 1;
      alibi::reference::Matrix shaped =
          alibi::reference::Matrix::Zero(like.dimension(0) * like.dimension(1), like.dimension(2));
      for (Index row = 0; row < all.rows(); row++)
        shaped.row(row / heads * of_batch * like.dimension(1) + row % heads * of_heads) += all.row(row);
      return shaped;
    };
    if (bias.kind == Kind::kSharedPositions) {
      grad.bias += grad.after;
      grad.key_positions = sum(grad.key_positions + grad.query_positions, bias.keys);
      grad.after.resize(0, 0), grad.query_positions.resize(0, 0);
    } else if (bias.kind == Kind::kPositions) {
      grad.key_positions = sum(grad.key_positions, bias.keys);
      grad.query_positions = sum(grad.query_positions, bias.queries);
    } else {
      grad.key_positions.resize(0, 0), grad.query_positions.resize(0, 0);
      if (bias.kind != Kind::kTwoSided) grad.after.resize(0, 0);
    }
  }

  static Tensor4<double> absolute(Tensor4<double> x) {
    for (Index i = 0; i < x.size(); i++) x.data()[i] = std::abs(x.data()[i]);
    return x;
  }

  template <class Inputs>
  Gradients magnitudes_of(const Inputs& in) const {
    using alibi::reference::add, alibi::reference::dot, alibi::reference::Matrix;
    const Index kv_rows = in.k.batch * in.k.heads * in.k.tokens, dim = in.q.head_dim, value_dim = in.v.head_dim;
    const Tensor4<double> dO = absolute(grad_output), qs = absolute(q), ks = absolute(k), vs = absolute(v);
    Gradients sums{Matrix::Zero(in.q.batch * in.q.heads * in.q.tokens, dim), Matrix::Zero(kv_rows, dim),
                   Matrix::Zero(kv_rows, value_dim), in.bias.no_gradient(in.q.batch)};
    constexpr bool kPositions = requires { in.bias.after; };
    if constexpr (kPositions) {
      sums.after = sums.bias;
      sums.key_positions = Matrix::Zero(in.q.batch * in.q.heads, in.k.tokens);
      sums.query_positions = Matrix::Zero(in.q.batch * in.q.heads, in.q.tokens);
    }
    in.for_each_row([&](Index number, Index b, Index h, Index i) {
      const auto row = in.row(b, h, i);
      const Index kv = in.kv_head(h), first_key = (b * in.k.heads + kv) * in.k.tokens;
      std::vector<double> dP;
      const double dlse = grad_lse.empty() ? 0 : std::abs(grad_lse[std::size_t(number)]);
      double D = dlse;
      for (std::size_t n = 0; n < row.keys.size(); n++) {
        dP.push_back(dot(&dO(b, h, i, 0), &vs(b, kv, row.keys[n], 0), value_dim));
        D += row.p[n] * dP.back();
      }
      [[maybe_unused]] Index origin = -1;
      if constexpr (kPositions)
        if (!row.keys.empty())
          origin =
              alibi::reference::one_sided_origin(in.bias.query(b, h, i, in.position(b, i)), in.position(b, i), row);
      for (std::size_t n = 0; n < row.keys.size(); n++) {
        const Index j = row.keys[n];
        const double p = row.p[n], dS = p * (dP[n] + D), scaled = std::abs(scale) * dS;
        add(p, &dO(b, h, i, 0), value_dim, &sums.v(first_key + j, 0));
        add(scaled, &ks(b, kv, j, 0), dim, &sums.q(number, 0));
        add(scaled, &qs(b, h, i, 0), dim, &sums.k(first_key + j, 0));
        if constexpr (kPositions) {
          const Index at = in.position(b, i);
          const auto of_row = in.bias.query(b, h, i, at);
          const bool left = of_row.is_left(at, j);
          const double distance = std::abs(alibi::reference::distance_beyond(of_row, origin, at, j));
          (left ? sums.bias : sums.after)(b, h) += dS * (1 + distance);
          const double g = dS * (left ? of_row.before : of_row.after);
          sums.key_positions(b * in.q.heads + h, j) += g;
          sums.query_positions(b * in.q.heads + h, i) += g;
        } else {
          double* const of_bias = in.bias.gradient(sums.bias, b, h);
          if constexpr (requires { in.bias.m; })
            *of_bias += dS * double(1 + std::abs(alibi::reference::distance(in.position(b, i), j) - row.origin));
          else
            in.bias.head(b, h).add_gradient(dS, row.origin, in.position(b, i), j, of_bias);
        }
      }
      if constexpr (requires { in.bias.m; })
        if (!row.keys.empty()) *in.bias.gradient(sums.bias, b, h) += dlse * double(row.origin);
      if constexpr (kPositions)
        if (origin >= 0 && !row.keys.empty()) {
          const auto of_row = in.bias.query(b, h, i, in.position(b, i));
          const bool left = of_row.is_left(in.position(b, i), origin);
          (left ? sums.bias : sums.after)(b, h) += dlse * of_row.apart(in.position(b, i), origin);
        }
    });
    return sums;
  }
};

/// The largest absolute value of a contiguous array.
template <class Array>
double largest(const Array& x) {
  double most = 0;
  for (Index i = 0; i < Index(x.size()); i++) most = std::max(most, std::abs(double(x.data()[i])));
  return most;
}

/// The error of each gradient: the largest |difference|, relative to the largest magnitude. The second array is for
/// information: relative to the largest exact gradient, if that is at least a thousandth of its terms.
struct BackwardErrors {
  static constexpr std::array kNames = {"q", "k", "v", "bias", "after", "key positions", "query positions"};
  std::array<double, kNames.size()> of_magnitude = {}, of_gradient = {};

  double worst() const { return *std::max_element(of_magnitude.begin(), of_magnitude.end()); }
};

using Arrays = std::array<std::vector<double>, BackwardErrors::kNames.size()>;

inline std::array<const alibi::reference::Matrix*, BackwardErrors::kNames.size()> arrays(const Gradients& grad) {
  return {&grad.q, &grad.k, &grad.v, &grad.bias, &grad.after, &grad.key_positions, &grad.query_positions};
}

/// An exact 0 for a magnitude of 0 has no error.
inline BackwardErrors errors(const Arrays& is, const Gradients& exact, const Gradients& magnitudes) {
  BackwardErrors errors;
  for (std::size_t a = 0; a < is.size(); a++) {
    const auto &should = *arrays(exact)[a], &magnitude = *arrays(magnitudes)[a];
    const double difference = distance(is[a], should);
    if (difference < 1e-20) continue;  // where all terms are 0, the kernel may have probabilities of 2^-100
    const double of_terms = largest(magnitude), of_itself = largest(should);
    errors.of_magnitude[a] = difference / of_terms;
    if (of_itself > 1e-3 * of_terms) errors.of_gradient[a] = difference / of_itself;
  }
  return errors;
}

/// One random call of the backward pass.
template <class T>
struct BackwardCall : Call<T> {
  Bias<T> bias;
  Strided<T> grad_output, grad_q, grad_k, grad_v;
  std::vector<T> grad_bias, grad_after, grad_lse;  // grad_lse: empty if the loss does not depend on the lse
  Tensor3<T> grad_key_positions, grad_query_positions;

  BackwardCall(Random& random, const Shape& shape)
      : Call<T>(random, shape),
        bias(random_bias(random, shape, this->slopes)),
        grad_output(like(random, this->output)),
        grad_q(like(random, this->q)),
        grad_k(like(random, this->k)),
        grad_v(like(random, this->v)),
        grad_bias(std::size_t(bias.numbers.size()), std::numeric_limits<T>::quiet_NaN()),
        grad_after(std::size_t(bias.after.size()), std::numeric_limits<T>::quiet_NaN()),
        grad_key_positions(bias.keys.dimensions()),
        grad_query_positions(bias.queries.dimensions()) {
    if (bias.kind == Bias<T>::Kind::kSharedPositions) grad_after.clear(), grad_query_positions = Tensor3<T>(0, 0, 0);
    fit_mask();
    grad_key_positions.setConstant(std::numeric_limits<T>::quiet_NaN());
    grad_query_positions.setConstant(std::numeric_limits<T>::quiet_NaN());
    grad_output.for_each([&](T& x) { x = T(random.normal()); });
    if (random.chance(0.4)) grad_lse.resize(this->lse.size());
    random.fill(grad_lse);
  }
  /// Two-sided slopes and positions take neither a prefix nor sinks.
  void fit_mask() {
    if (int(bias.kind) < int(Bias<T>::Kind::kTwoSided)) return;
    this->options.mask.prefix = 0, this->options.mask.sinks.reset();
    this->options.prefixes = {};
  }
  static Strided<T> like(Random& random, const Strided<T>& x) {
    const alibi::View<T> view = x.view();
    return Strided<T>(random, view.batch, view.heads, view.tokens, view.head_dim);
  }

  std::string description() const {
    const char* const kinds[] = {"slopes [batch, heads]", "slopes [heads]", "table",           "no bias",
                                 "two-sided slopes",      "positions",      "shared positions"};
    std::ostringstream text;
    text << Call<T>::description() << "; bias: " << kinds[int(bias.kind)];
    if (bias.kind == Bias<T>::Kind::kTable) text << " of " << bias.numbers.cols() << " from " << bias.first;
    if (!grad_lse.empty()) text << ", with the gradient of the lse";
    if (bias.keys.size() > 0)
      text << " [" << bias.keys.dimension(0) << ", " << bias.keys.dimension(1) << "] from " << bias.keys.data()[0]
           << " to " << bias.keys.data()[bias.keys.size() - 1] << (bias.any_order ? ", in any order" : "");
    return text.str();
  }

  Exact exact() const {
    const double scale = this->options.scale.value_or(1 / std::sqrt(double(this->s.head_dim)));
    return {contiguous(grad_output),
            contiguous(this->q),
            contiguous(this->k),
            contiguous(this->v),
            bias.in_double(),
            this->masks(),
            scale,
            std::vector<double>(grad_lse.begin(), grad_lse.end())};
  }
  static Tensor4<double> contiguous(const Strided<T>& x) {
    const alibi::View<T> view = x.view();
    Tensor4<double> y(view.batch, view.heads, view.tokens, view.head_dim);
    double* to = y.data();
    x.for_each([&](const T& value) { *to++ = double(value); });
    return y;
  }

  /// The library's gradients of q, k, v and the bias, after the library's own forward.
  Arrays run() {
    bias.visit([&](const auto& m) {
      using M = std::remove_cvref_t<decltype(m)>;
      alibi::attention_with_lse_into(this->output.view(), this->lse, this->q.view(), this->k.view(), this->v.view(), m,
                                     this->options);
      const auto run_into = [&](const alibi::GradientViews<T>& to) {
        const auto backward = [&](const auto& gradient) {
          alibi::attention_backward_into(to, gradient, this->q.view(), this->k.view(), this->v.view(), m,
                                         {this->output.view(), this->lse}, this->options);
        };
        if (grad_lse.empty())
          backward(grad_output.view());
        else
          backward(alibi::ForwardResult{grad_output.view(), std::span<const T>(grad_lse)});
      };
      const auto to_q = grad_q.view(), to_k = grad_k.view(), to_v = grad_v.view();
      if constexpr (alibi::detail::kIsTwoSided<M>)
        run_into({to_q, to_k, to_v, alibi::two_sided(grad_bias, grad_after)});
      else if constexpr (alibi::detail::kSharesPositions<M>)
        run_into({to_q, to_k, to_v, alibi::positions(grad_bias, grad_key_positions)});
      else if constexpr (alibi::detail::kIsPositions<M>)
        run_into({to_q, to_k, to_v,
                  alibi::positions(alibi::two_sided(grad_bias, grad_after), grad_key_positions, grad_query_positions)});
      else
        run_into({to_q, to_k, to_v, grad_bias});
    });
    const auto numbers = [](const auto& x) { return std::vector<double>(x.data(), x.data() + x.size()); };
    return {grad_q.take(),
            grad_k.take(),
            grad_v.take(),
            numbers(grad_bias),
            numbers(grad_after),
            numbers(grad_key_positions),
            numbers(grad_query_positions)};
  }
};

/// Tensors with as many queries as keys, and the library's gradients for them.
template <class T>
struct Case {
  Tensor4<T> q, k, v, grad_output;

  Case(Random& random, Index batch, Index kv_heads, Index group, Index tokens, Index dim, Index value_dim)
      : q(random.tensor<T>(batch, kv_heads * group, tokens, dim)),
        k(random.tensor<T>(batch, kv_heads, tokens, dim)),
        v(random.tensor<T>(batch, kv_heads, tokens, value_dim)),
        grad_output(random.tensor<T>(batch, kv_heads * group, tokens, value_dim)) {}

  template <class Bias>
  auto backward(const Bias& bias, const alibi::Options& options = {}) const {
    return alibi::attention_backward(grad_output, q, k, v, bias, alibi::attention_with_lse(q, k, v, bias, options),
                                     options);
  }
  /// The same with the gradient of the lse.
  template <class Bias>
  auto backward(const Bias& bias, const alibi::Options& options, const std::vector<T>& grad_lse) const {
    return alibi::attention_backward(alibi::ForwardResult{grad_output, grad_lse}, q, k, v, bias,
                                     alibi::attention_with_lse(q, k, v, bias, options), options);
  }
};

}  // namespace test
