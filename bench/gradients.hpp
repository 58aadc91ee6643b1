// The common parts of benchmarks of gradients: the bias of one head for the definition, and the comparison with it.
#pragma once

#include <alibi/reference.hpp>
#include <alibi/relative_bias.hpp>
#include <string>

#include "inputs.hpp"

namespace bench {

/// The bias of one head, in a form for the reference.
template <class A>
A of_head(const Vector<A>& slopes, Index head) {
  return slopes[head];
}
inline alibi::NoBias of_head(alibi::NoBias, Index) { return {}; }
template <class A>
alibi::RelativeBias<A> of_head(alibi::RelativeBias<A> bias, Index head) {
  bias.data += head * bias.head_stride;
  bias.heads = 1;
  return bias;
}

/// Checks that every entry of the gradient of `what` is within `bound` of the definition's, relative to the largest.
template <class Actual, class Expected>
void check_gradient(const std::string& name, const char* what, const Actual& actual, const Expected& expected,
                    double bound) {
  const auto error = (actual.template cast<double>() - expected).cwiseAbs();
  const double largest = expected.cwiseAbs().maxCoeff(), worst = error.maxCoeff() / largest;
  if (worst <= bound && error.allFinite()) return;  // maxCoeff() may ignore NaN
  fail(name,
       std::string("the gradient of ") + what + " is off by " + std::to_string(worst / bound) + " times the bound");
}

}  // namespace bench
