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
  enum class Kind { kSlopes, kSlopesOfHeads, kTable, kNone };

  Kind kind = Kind::kNone;
  RowMatrix<T> numbers = {};  ///< [batch, heads], [1, heads], [heads, entries], or empty
  Index first = 0;            ///< the first distance of a table

  /// Calls body() with the bias in the form that attention takes.
  template <class Body>
  auto visit(Body body) const {
    if (kind == Kind::kSlopes) return body(numbers);
    if (kind == Kind::kSlopesOfHeads) return body(Vector<T>(numbers.row(0)));
    if (kind == Kind::kTable) return body(alibi::relative_bias(numbers, first));
    return body(alibi::no_bias);
  }
  Bias<double> in_double() const { return {Bias<double>::Kind(int(kind)), numbers.template cast<double>(), first}; }
  /// Converts a reference gradient of slopes [batch, heads] to the shape of `numbers`.
  alibi::reference::Matrix shaped(const alibi::reference::Matrix& gradient) const {
    return kind == Kind::kSlopesOfHeads ? gradient.colwise().sum() : gradient;
  }
};

template <class T>
Bias<T> random_bias(Random& random, const Shape& s, const RowMatrix<T>& slopes) {
  using Kind = typename Bias<T>::Kind;
  const Index heads = s.kv_heads * s.group;
  switch (random.integer(0, 4)) {
    case 0:
      return {Kind::kNone};
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
  alibi::Mask mask;
  double scale;
  std::vector<double> grad_lse = {};  // [batch, heads, queries]; empty: 0

  alibi::reference::Result forward() const {
    return bias.visit([&](const auto& b) { return alibi::reference::attention(q, k, v, b, mask, scale); });
  }
  Gradients backward() const {
    return bias.visit([&](const auto& b) {
      Gradients grad = alibi::reference::attention_backward(grad_output, q, k, v, b, mask, scale, grad_lse);
      grad.bias = bias.shaped(grad.bias);
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
      Gradients sums = magnitudes_of(alibi::reference::inputs(q, k, v, b, mask, scale));
      sums.bias = bias.shaped(sums.bias);
      return sums;
    });
  }

 private:
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
      for (std::size_t n = 0; n < row.keys.size(); n++) {
        const Index j = row.keys[n];
        const double p = row.p[n], dS = p * (dP[n] + D), scaled = std::abs(scale) * dS;
        add(p, &dO(b, h, i, 0), value_dim, &sums.v(first_key + j, 0));
        add(scaled, &ks(b, kv, j, 0), dim, &sums.q(number, 0));
        add(scaled, &qs(b, h, i, 0), dim, &sums.k(first_key + j, 0));
        double* const of_bias = in.bias.gradient(sums.bias, b, h);
        if constexpr (requires { in.bias.m; })
          *of_bias += dS * double(1 + std::abs(alibi::reference::distance(in.position(i), j) - row.origin));
        else
          in.bias.head(b, h).add_gradient(dS, row.origin, in.position(i), j, of_bias);
      }
      if constexpr (requires { in.bias.m; })
        if (!row.keys.empty()) *in.bias.gradient(sums.bias, b, h) += dlse * double(row.origin);
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
  static constexpr std::array kNames = {"q", "k", "v", "bias"};
  std::array<double, 4> of_magnitude = {}, of_gradient = {};

  double worst() const { return *std::max_element(of_magnitude.begin(), of_magnitude.end()); }
};

inline std::array<const alibi::reference::Matrix*, 4> arrays(const Gradients& grad) {
  return {&grad.q, &grad.k, &grad.v, &grad.bias};
}

/// An exact 0 for a magnitude of 0 has no error.
inline BackwardErrors errors(const std::array<std::vector<double>, 4>& is, const Gradients& exact,
                             const Gradients& magnitudes) {
  BackwardErrors errors;
  for (std::size_t a = 0; a < 4; a++) {
    const auto &should = *arrays(exact)[a], &magnitude = *arrays(magnitudes)[a];
    const double difference = distance(is[a], should);
    if (difference == 0) continue;
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
  std::vector<T> grad_bias, grad_lse;  // grad_lse: empty if the loss does not depend on the lse

  BackwardCall(Random& random, const Shape& shape)
      : Call<T>(random, shape),
        bias(random_bias(random, shape, this->slopes)),
        grad_output(like(random, this->output)),
        grad_q(like(random, this->q)),
        grad_k(like(random, this->k)),
        grad_v(like(random, this->v)),
        grad_bias(std::size_t(bias.numbers.size()), std::numeric_limits<T>::quiet_NaN()) {
    grad_output.for_each([&](T& x) { x = T(random.normal()); });
    if (random.chance(0.4)) grad_lse.resize(this->lse.size());
    random.fill(grad_lse);
  }
  static Strided<T> like(Random& random, const Strided<T>& x) {
    const alibi::View<T> view = x.view();
    return Strided<T>(random, view.batch, view.heads, view.tokens, view.head_dim);
  }

  std::string description() const {
    const char* const kinds[] = {"slopes [batch, heads]", "slopes [heads]", "table", "no bias"};
    std::ostringstream text;
    text << Call<T>::description() << "; bias: " << kinds[int(bias.kind)];
    if (bias.kind == Bias<T>::Kind::kTable) text << " of " << bias.numbers.cols() << " from " << bias.first;
    if (!grad_lse.empty()) text << ", with the gradient of the lse";
    return text.str();
  }

  Exact exact() const {
    const double scale = this->options.scale.value_or(1 / std::sqrt(double(this->s.head_dim)));
    return {contiguous(grad_output),
            contiguous(this->q),
            contiguous(this->k),
            contiguous(this->v),
            bias.in_double(),
            this->options.mask,
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
  std::array<std::vector<double>, 4> run() {
    bias.visit([&](const auto& m) {
      alibi::attention_with_lse_into(this->output.view(), this->lse, this->q.view(), this->k.view(), this->v.view(), m,
                                     this->options);
      const auto backward = [&](const auto& gradient) {
        alibi::attention_backward_into({grad_q.view(), grad_k.view(), grad_v.view(), grad_bias}, gradient,
                                       this->q.view(), this->k.view(), this->v.view(), m,
                                       {this->output.view(), this->lse}, this->options);
      };
      if (grad_lse.empty())
        backward(grad_output.view());
      else
        backward(alibi::ForwardResult{grad_output.view(), std::span<const T>(grad_lse)});
    });
    return {grad_q.take(), grad_k.take(), grad_v.take(), std::vector<double>(grad_bias.begin(), grad_bias.end())};
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
