// The result that the library's documentation requires, against the definition (reference.hpp) in double.
//
//   sees no key                           output 0, lse -inf
//   a NaN in the query or a visible key   NaN, for any tolerance
//   finite, and within the range of T     within a bound of the definition, derived below for each row
//   an infinity, or beyond that range     NaN where it is NaN without pruning; otherwise nothing is guaranteed
//
// Columns of the output are ignored if a value of the row's block is not finite there.
//
// The bound. Let d_j be an upper bound of the rounding error of each logit s_j, with its bias relative to the row's
// nearest key as in the kernels. The key's share of the softmax mass lies between
//
//   e^{s_j - d_j} / Σ e^{s + d}   and   e^{s_j + d_j} / Σ e^{s - d}.
//
// The error of the output is at most the sum of the errors of the shares, times the spread of the values. It is at most
// the spread itself, however large the logits are, because any softmax gives a mean of the values. The bound adds the
// share that may be pruned, times the spread, and the rounding of probabilities, sums and outputs.
#pragma once

#include <alibi/kernel/tile/load.hpp>
#include <alibi/mask.hpp>
#include <alibi/reference.hpp>
#include <limits>
#include <optional>
#include <vector>

#include "input.hpp"

namespace fuzz {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// How numbers are rounded: arrays of E, sums in T, and for bfloat16 optionally the dot product instruction.
struct Precision {
  double unit, tiny, largest;           // of T: half an ulp of 1, the smallest and the largest number
  double stored, stored_tiny;           // of E
  double probability = 0, flushed = 0;  // of the instruction: half an ulp of 1, and the numbers that it treats as 0
  bool pairs() const { return probability > 0; }

  template <class E>
  static Precision of(bool pairs) {
    using T = alibi::detail::Sum<E>;
    using Limits = std::numeric_limits<T>;
    Precision p{double(Limits::epsilon()) / 2, double(Limits::denorm_min()), double((Limits::max)()), 0, 0};
    constexpr bool kBfloat = std::is_same_v<E, Eigen::bfloat16>;
    if (sizeof(E) == 2) p.stored = kBfloat ? 0x1p-8 : 0x1p-11;
    // The instructions that convert to bfloat16 flush subnormal numbers.
    if (sizeof(E) == 2) p.stored_tiny = kBfloat ? 0x1p-126 : 0x1p-25;
    if (pairs) p.probability = 0x1p-8, p.flushed = 0x1p-126;
    return p;
  }
};

/// A query head of one sequence in double, and the parameters of the call.
struct Head {
  const double *q, *k, *v;  // [queries][head_dim], [keys][head_dim], [keys][value_dim]
  Index queries, keys, head_dim, value_dim;
  double slope, scale;
  alibi::Mask mask;
  std::vector<double> table = {};              // entries of a relative bias, instead of the slope; or empty
  Index first = 0;                             // the distance of the first entry
  std::optional<double> after = std::nullopt;  // two-sided slopes: that after a query; `slope` is that before it
  const double *key_positions = nullptr, *query_positions = nullptr;  // [keys], [queries]; or null
  bool any_order = false;                                             // whether positions may decrease

  Index position(Index i) const { return i + mask.query_offset.value_or(keys - queries); }
  bool sees(Index i, Index j) const {
    return alibi::reference::sees(mask, position(i), j) && (!after || sides(i).sees(position(i), j));
  }
  alibi::reference::TableOfHead<double> table_bias() const { return {table.data(), Index(table.size()), first}; }
  /// The bias of a query, if it is two-sided.
  alibi::reference::PositionsOfQuery sides(Index i) const {
    const alibi::PositionView of_keys{key_positions, true, 1, 1, keys};
    return {slope, *after, of_keys, query_positions ? query_positions[i] : double(position(i)), 0, 0};
  }
  const double* query(Index i) const { return q + i * head_dim; }
  const double* key(Index j) const { return k + j * head_dim; }
};

/// The results of the call, and how the kernel may have computed them.
struct Answer {
  const double *output, *lse;  // [queries][value_dim], [queries]
  double pruned_mass;          // upper bound of the pruned share of a row's softmax mass
  bool dense;                  // whether every visible value was read
  Index block;                 // queries that share a block, and with it values that are not finite
  bool whole_tiles = false;    // whether a row reads all keys of each tile in which it sees a key, as decode does
};

class Judge {
 public:
  Judge(const Head& head, const Precision& precision, const Answer& answer)
      : h_(head), p_(precision), a_(answer), bad_columns_(std::size_t(h_.value_dim)) {
    for (Index j = 0; j < h_.keys; j++) {
      Size key;
      for (Index d = 0; d < h_.head_dim; d++) key.add(h_.key(j)[d]);
      keys_.push_back(key);
      for (Index d = 0; d < h_.value_dim; d++)
        if (!std::isfinite(h_.v[j * h_.value_dim + d])) bad_values_.emplace_back(j, d);
    }
  }

  /// Checks every row. Returns the rows for which only NaN is guaranteed.
  std::vector<Index> run() {
    std::vector<Index> beyond;
    for (row_ = 0; row_ < h_.queries; row_++)
      if (!judge_row()) beyond.push_back(row_);
    return beyond;
  }

 private:
  /// The size of the numbers of a key or a query.
  struct Size {
    double sum = 0, largest = 0;  // of absolute values
    bool nan = false, infinite = false;
    void add(double x) {
      nan = nan || std::isnan(x);
      infinite = infinite || std::isinf(x);
      sum += std::abs(x);
      largest = std::max(largest, std::abs(x));
    }
  };
  struct Weight {
    Index key;
    double logit, error;  // s_j and d_j
    double share = 0;
  };

  bool judge_row() {
    find_bad_columns();
    weights_.clear();
    for (Index j = 0; j < h_.keys; j++)
      if (h_.sees(row_, j)) weights_.push_back({j, 0, 0});
    if (weights_.empty()) {
      for (Index d = 0; d < h_.value_dim; d++)
        require(bad_column(d) || output(d) == 0, d, "0, because no key is visible");
      require(lse() == -kInfinity, -1, "-inf, because no key is visible");
      return true;
    }
    Size query;
    for (Index d = 0; d < h_.head_dim; d++) query.add(h_.query(row_)[d]);
    bool nan = query.nan, infinite = query.infinite;
    for (const Weight& w : weights_) {
      nan = nan || keys_[std::size_t(w.key)].nan;
      infinite = infinite || keys_[std::size_t(w.key)].infinite;
    }
    if (nan) {
      for (Index d = 0; d < h_.value_dim; d++) require(std::isnan(output(d)), d, "NaN, because the query or a key is");
      require(std::isnan(lse()), -1, "NaN, because the query or a key is");
      return true;
    }
    if (infinite || !compute_logits(query)) return false;
    judge_finite();
    return true;
  }

  /// Computes the logits and their errors. Returns false if they are beyond the range of T.
  bool compute_logits(const Size& query) {
    const auto finite = [](double x) { return std::isfinite(x) ? x : 0; };
    const double m = h_.after ? std::max(finite(h_.slope), finite(*h_.after)) : std::abs(h_.slope),
                 scale = std::abs(h_.scale), base_2 = std::numbers::log2e;
    if (!p_.pairs() && query.largest * scale * base_2 > p_.largest / 2) return false;
    const auto distance = [&](Index j) { return alibi::reference::distance(h_.position(row_), j); };
    common_ = distance(weights_.front().key);
    for (const Weight& w : weights_)
      common_ = !h_.table.empty() ? 0
                : h_.slope >= 0   ? std::min(common_, distance(w.key))
                                  : std::max(common_, distance(w.key));
    shift_ = std::abs(h_.slope) * double(common_);
    std::optional<alibi::reference::PositionsOfQuery> sides;
    Index origin = 0;
    bool both_sides = false;
    if (h_.after) {
      sides = h_.sides(row_);
      std::vector<Index> keys;
      for (const Weight& w : weights_) {
        keys.push_back(w.key);
        both_sides = both_sides || sides->is_left(h_.position(row_), w.key) !=
                                       sides->is_left(h_.position(row_), weights_.front().key);
      }
      origin = sides->origin(h_.position(row_), keys);
      shift_ = -sides->of(h_.position(row_), origin);
    }

    largest_ = -kInfinity;
    for (Weight& w : weights_) {
      double dot = 0, size = 0;
      const double *q = h_.query(row_), *k = h_.key(w.key);
      for (Index d = 0; d < h_.head_dim; d++) {
        dot += q[d] * k[d];
        size += std::abs(q[d] * k[d]);
      }
      if (!(size * scale * base_2 <= p_.largest / 8 && (!p_.pairs() || size <= p_.largest / 8))) return false;
      const double entry = h_.table.empty() ? 0 : h_.table_bias().beyond(0, h_.position(row_), w.key);
      double away = h_.table.empty() ? double(std::abs(distance(w.key) - common_)) : 0;
      double bias = m * away + std::abs(entry);
      const double dims = double(h_.head_dim);
      w.logit = h_.scale * dot + entry - h_.slope * away * (distance(w.key) < common_ ? -1 : 1);
      if (sides) {
        const Index p = h_.position(row_);
        const double beyond = sides->beyond(origin, p, w.key);
        w.logit = h_.scale * dot + beyond;
        // The slopes of the two sides are rounded, each by itself.
        bias = std::abs(beyond) + (both_sides ? shift_ : 0);
        away = sides->apart(p, w.key);
        if (!(bias * base_2 <= p_.largest / 8 && away <= p_.largest / 8)) return false;
      }
      w.error = 2 * p_.unit * ((dims + 8) * (size * scale + bias) + 16);
      // Underflow of the scale, the scaled query, the products and the slope.
      const Size& key = keys_[std::size_t(w.key)];
      w.error += 2 * p_.tiny * (size + key.sum + dims + away + 64);
      if (p_.pairs()) w.error += 2 * p_.flushed * scale * (query.sum + key.sum + dims);
      if (!(std::abs(entry) * base_2 <= p_.largest / 8)) return false;
      if (m * base_2 > p_.largest) w.error += bias / 2;  // slopes are clamped
      largest_ = std::max(largest_, w.logit);
    }
    for (Weight& w : weights_) w.error += 16 * p_.unit * (std::abs(w.logit) + std::abs(largest_) + 16);
    return true;
  }

  void judge_finite() {
    double sum = 0, least = 0, most = 0;
    for (Weight& w : weights_) {
      const double x = w.logit - largest_;
      w.share = std::exp(x);
      sum += w.share;
      if (w.error < 1e-3) {
        least += w.share * (1 - w.error);
        most += w.share * (1 + 2 * w.error);
      } else {
        least += std::exp(x - w.error);
        most += std::exp(x + w.error);
      }
    }
    double moved = 0;  // the sum of the errors of the shares
    for (Weight& w : weights_) {
      const double up = w.error < 1e-3 ? w.share * (1 + 2 * w.error) : std::exp(w.logit - largest_ + w.error);
      const double down = w.error < 1e-3 ? w.share * (1 - w.error) : std::exp(w.logit - largest_ - w.error);
      w.share /= sum;
      moved += std::max(up / least - w.share, w.share - down / most);
    }
    const double tiles = double(weights_.size()) / 64 + 2;
    const double sums = p_.unit * (160 + 4 * tiles);  // 64 terms one after another, then their tiles; 2^x
    moved = moved <= 1 ? moved : 1;                   // also if infinite or NaN

    expected_.resize(std::size_t(h_.value_dim));
    const alibi::View<const double> k{h_.k, 1, 1, h_.keys, h_.head_dim, 0, 0, h_.head_dim},
        v{h_.v, 1, 1, h_.keys, h_.value_dim, 0, 0, h_.value_dim};
    double expected_lse = 0;
    const auto attend = [&](const auto& bias) {
      const auto row = alibi::reference::softmax(h_.query(row_), h_.position(row_), k, bias, h_.mask, h_.scale);
      alibi::reference::mean(row, v, expected_.data());
      expected_lse = row.lse;
    };
    if (!h_.table.empty())
      attend(h_.table_bias());
    else if (h_.after)
      attend(h_.sides(row_));
    else {
      expected_lse = alibi::reference::attend(h_.query(row_), h_.position(row_), k, v, h_.slope, h_.mask, h_.scale,
                                              expected_.data());
    }
    judge_lse(expected_lse, std::max(std::log(most / sum), std::log(sum / least)) + sums);
    for (Index d = 0; d < h_.value_dim; d++) judge_column(d, moved, sums);
  }

  void judge_lse(double expected, double rounding) {
    rounding += 2 * p_.unit * std::abs(expected) + 0x1p-50 * (shift_ + std::abs(expected));
    if (!(std::abs(expected) + rounding < p_.largest)) return;  // an infinite lse is correct
    const double low = expected + std::log1p(-a_.pruned_mass) - rounding, high = expected + rounding;
    require(low <= lse() && lse() <= high, -1, expected, ", in [", low, ", ", high, ']');
  }

  void judge_column(Index d, double moved, double sums) {
    if (bad_column(d)) {
      bool nan = false, infinite = false;
      for (const Weight& w : weights_) {
        nan = nan || std::isnan(value(w.key, d));
        infinite = infinite || std::isinf(value(w.key, d));
      }
      // All values are read, so a value that is not finite must appear.
      if (a_.dense && nan) require(std::isnan(output(d)), d, "NaN, because a value is");
      if (a_.dense && infinite) require(!std::isfinite(output(d)), d, "not finite, because a value is not");
      return;
    }
    double low = kInfinity, high = -kInfinity, all = 0, weighted = 0;
    for (const Weight& w : weights_) {
      const double x = value(w.key, d);
      low = std::min(low, x), high = std::max(high, x);
      all += std::abs(x);
      weighted += w.share * std::abs(x);
    }
    if (all * 0x1p9 > p_.largest) return;  // their sum may be beyond the range although their mean is not
    const double spread = high - low, size = std::max(high, -low), expected = expected_[std::size_t(d)];
    double bound = std::min(moved + a_.pruned_mass, 1.) * spread;
    bound += (sums + p_.probability) * (weighted + moved * size);
    bound += (p_.tiny + p_.flushed) * 2 * double(weights_.size() + 16);
    bound += p_.stored * (std::abs(expected) + bound) + p_.stored_tiny;
    require(std::abs(output(d) - expected) <= bound, d, expected, " within ", bound);
  }

  /// The columns of the row's output in which a value that is not finite may appear.
  void find_bad_columns() {
    std::fill(bad_columns_.begin(), bad_columns_.end(), false);
    const Index begin = row_ / a_.block * a_.block, end = std::min(begin + a_.block, h_.queries);
    for (const auto& [key, d] : bad_values_) {
      bool reaches = false;
      for (Index i = begin; i < end && !reaches; i++) reaches = h_.sees(i, key) || (p_.pairs() && h_.sees(i, key ^ 1));
      const Index tile = key / alibi::kernel::kTile * alibi::kernel::kTile;
      for (Index j = tile; a_.whole_tiles && !reaches && j < std::min(tile + alibi::kernel::kTile, h_.keys); j++)
        reaches = h_.sees(row_, j);
      if (reaches) bad_columns_[std::size_t(d)] = true;
    }
  }
  bool bad_column(Index d) const { return bad_columns_[std::size_t(d)]; }

  double value(Index j, Index d) const { return h_.v[j * h_.value_dim + d]; }
  double output(Index d) const { return a_.output[row_ * h_.value_dim + d]; }
  double lse() const { return a_.lse[row_]; }

  template <class... Parts>
  void require(bool kept, Index column, const Parts&... expected) const {
    if (kept) [[likely]]
      return;
    std::ostringstream text;
    text.precision(12);
    text << "row " << row_ << " of " << h_.queries << " at position " << h_.position(row_) << " of " << h_.keys
         << " keys, slope " << h_.slope << ": ";
    if (column < 0)
      text << "lse is " << lse();
    else
      text << "output[" << column << "] is " << output(column);
    ((text << "; expected ") << ... << expected);
    fail(text.str());
  }

  const Head h_;
  const Precision p_;
  const Answer a_;
  Index row_ = 0, common_ = 0;  // common_: the distance that the row's bias is relative to
  double largest_ = 0;          // the largest logit
  double shift_ = 0;            // what the bias takes from all logits of the row
  std::vector<Size> keys_;
  std::vector<Weight> weights_;  // of the keys that the row sees
  std::vector<double> expected_;
  std::vector<std::pair<Index, Index>> bad_values_;  // keys and columns that are not finite
  std::vector<bool> bad_columns_;
};

}  // namespace fuzz
