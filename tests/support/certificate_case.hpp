// Inputs that are hard for the certificate of pruning, and the softmax mass that is actually pruned.
//
// The test observes from outside which keys a row computed. The first columns of v mark the piece of kPiece keys that a
// key belongs to. A computed key has a probability of at least 2^-100, so an output of exactly 0 in such a column means
// that the row computed no key of that piece. The certificate bounds the softmax mass of these keys, which is
// calculated here in long double from the rounded inputs.
#pragma once

#include <alibi/reference.hpp>
#include <array>
#include <iomanip>
#include <sstream>
#include <utility>

#include "common.hpp"

namespace test {

/// From half an ulp of float, the default, upwards.
inline constexpr std::array kTolerances = {0x1p-24, 1e-5, 1e-3, 1e-2};

enum class Kind {
  normal,
  far_outliers,  // a few keys of the distant half are 20 times as long
  first_tile,    // some of the first 64 keys are 10 to 100 times as long
  one_huge,      // one key is 1,000 times as long
  mean_10,       // all keys share a mean of 10 standard deviations
  mean_1000,     // … of 1,000
  identical,     // all keys are the same
  zero_queries,  // all, or every third
  denormal,      // queries, keys or both
  alternating,   // k_j = ±w, with alternating signs
  aligned,       // a few distant keys have the direction of a query: the worst case of Cauchy-Schwarz
  threshold,     // all keys beyond some distance are aligned, and so long that their mass is near the tolerance
  two_sided,     // threshold with alternating signs, so that no centre helps
  farthest,      // threshold, but only the first key
  compensated,   // threshold, but each key is as long as its distance requires, so that all have equal mass
  decaying,      // keys get shorter with their position
  growing,       // keys get longer with their position
};
inline constexpr std::array kKindNames = {"normal",       "far outliers", "first tile", "one huge norm", "mean of 10",
                                          "mean of 1000", "identical",    "no query",   "denormal",      "alternating",
                                          "aligned",      "threshold",    "two-sided",  "farthest",      "compensated",
                                          "decaying",     "growing"};

/// How close a call came to violating a guarantee.
struct Outcome {
  std::array<double, kTolerances.size()> pruned_mass = {};  // the largest pruned share of a row's softmax mass
  std::array<Index, kTolerances.size()> computed = {};      // pairs of a block and a tile that were computed
  Index total = 0;                                          // pairs of a block and a tile in total
  std::string violation;                                    // the first violated guarantee
};

/// The bias of a certificate case that has slopes alone.
struct SlopesAlone {
  template <class Slopes>
  void choose(Random&, const Slopes&, Index, Index, Index, const alibi::Mask&) {}
  template <class Slopes, class Body>
  void visit(const Slopes& slopes, Body body) const {
    body(slopes);
  }
  /// Whether a head sees key j from position p, if the mask lets it.
  bool sees(Index, Index, Index, Index) const { return true; }
  /// The bias of key j for query i at position p.
  long double operator()(double slope, Index, Index, Index, Index p, Index j, Index nearest) const {
    return -static_cast<long double>(slope) * static_cast<long double>(alibi::reference::distance(p, j) - nearest);
  }
  void describe(std::ostream&) const {}
};

/// A call with keys to prune. The seed determines all of it. `Bias` has the members of SlopesAlone.
template <class T, class Bias = SlopesAlone>
class CertificateCase {
 public:
  explicit CertificateCase(std::uint64_t seed) : random_(seed), kind_(Kind(random_.integer(0, kKindNames.size() - 1))) {
    choose_shape();
    choose_mask();
    choose_slopes();
    if (!std::is_same_v<Bias, SlopesAlone>) options_.mask.prefix = 0, options_.mask.sinks.reset();
    bias_.choose(random_, slopes_, queries_, keys_, position(0), options_.mask);
    choose_numbers();
  }

  Outcome run() {
    const Result dense = attend(0);
    std::vector<Result> pruned;
    pruned.reserve(kTolerances.size());
    for (const double tolerance : kTolerances) pruned.push_back(attend(tolerance));
    for (Index head = 0; head < batch_ * heads_; head++) check_head(head, dense, pruned);
    return outcome_;
  }

  std::string description() const {
    std::ostringstream text;
    text << kKindNames[std::size_t(kind_)] << ": q [" << batch_ << ", " << heads_ << ", " << queries_ << ", "
         << head_dim_ << "], k [" << batch_ << ", " << kv_heads_ << ", " << keys_ << ", " << head_dim_ << ']'
         << (options_.mask.causal ? ", causal" : ", bidirectional");
    if (options_.mask.window) text << ", window " << *options_.mask.window;
    if (options_.mask.query_offset) text << ", query_offset " << *options_.mask.query_offset;
    if (options_.mask.prefix > 0) text << ", prefix " << options_.mask.prefix;
    if (options_.mask.sinks) text << ", sinks " << *options_.mask.sinks;
    if (options_.scale) text << ", scale " << *options_.scale;
    if (options_.bf16_dot) text << ", bf16_dot " << options_.bf16_dot;
    text << ", slopes";
    for (Index i = 0; i < slopes_.size(); i++) text << ' ' << slopes_.data()[i];
    bias_.describe(text);
    return text.str();
  }

 private:
  using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using Long = long double;
  static constexpr bool kHalf = std::is_same_v<T, Eigen::half>, kBfloat = std::is_same_v<T, Eigen::bfloat16>;
  static constexpr Index kPiece = 8;    // the smallest number of keys that a kernel skips
  static constexpr Index kColumns = 4;  // columns of random values, after those that mark pieces

  // The number that marks a piece in v. Half rounds 2^-25 to 0; with this mark, a piece that looks pruned has less than
  // 2^-40.
  static constexpr double kMark = kHalf ? 0x1p15 : 1;
  // The mass that may look pruned although it was computed.
  double undetected_mass() const { return kHalf ? 0x1p-40 * double(pieces_) : 0x1p-80; }

  struct Result {
    Tensor4<T> output;
    std::vector<Accumulator> lse;
    std::vector<alibi::PruningStats> stats;
  };

  Result attend(double tolerance) const {
    const auto rows = std::size_t(batch_ * heads_ * queries_);
    Result result{Tensor4<T>(batch_, heads_, queries_, pieces_ + kColumns), std::vector<Accumulator>(rows),
                  std::vector<alibi::PruningStats>(std::size_t(batch_ * heads_))};
    alibi::Options options = options_;
    options.tolerance = tolerance;
    options.pruning_stats = result.stats;
    bias_.visit(slopes_, [&](const auto& bias) {
      alibi::attention_with_lse_into(result.output, result.lse, q_, k_, v_, bias, options);
    });
    return result;
  }

  // About 250,000 pairs of a query and a key, with enough keys for several prunable tiles.
  void choose_shape() {
    batch_ = random_.integer(1, 2), kv_heads_ = random_.integer(1, 2), heads_ = kv_heads_ * random_.integer(1, 3);
    const double size = random_.uniform(0, 1);
    keys_ = size < 0.1 ? random_.integer(1, 100) : size < 0.5 ? random_.integer(100, 600) : random_.integer(600, 1500);
    queries_ = random_.chance(0.2) ? random_.integer(1, 4) : random_.chance(0.5) ? keys_ : random_.integer(1, keys_);
    queries_ = std::clamp<Index>(250'000 / (batch_ * heads_ * keys_), 1, queries_);
    head_dim_ = random_.chance(0.3) ? 8 * random_.integer(1, 8) : random_.integer(1, 40);
    pieces_ = (keys_ + kPiece - 1) / kPiece;
    if (random_.chance(0.25)) options_.scale = random_.uniform(-2, 2) / std::sqrt(double(head_dim_));
    if (random_.chance(0.1)) options_.scale = random_.uniform(-30, 30);
  }

  void choose_mask() {
    options_.mask.causal = random_.chance(0.65);
    if (random_.chance(0.25)) options_.mask.window = random_.integer(1, keys_ + 10);
    if (random_.chance(0.3)) options_.mask.query_offset = random_.integer(-queries_, keys_ + 10);
    if (random_.chance(0.02)) options_.mask.query_offset = Index(1) << random_.integer(20, 40);
    if (options_.mask.causal && random_.chance(0.2)) options_.mask.prefix = random_.integer(0, keys_);
    if (options_.mask.window && random_.chance(0.5))
      options_.mask.sinks = random_.integer(1, random_.chance(0.5) ? 8 : keys_);
    if (kBfloat) options_.bf16_dot = random_.chance(0.5);
  }

  // One call in ten each has the authors' slopes, steep slopes, and slopes that allow no pruning.
  void choose_slopes() {
    slopes_.resize(batch_, heads_);
    const Index kind = random_.integer(0, 9);
    for (Index b = 0; b < batch_; b++)
      for (Index h = 0; h < heads_; h++) {
        const double moderate = std::exp2(random_.uniform(-6, 3)), any = random_.uniform(-0.1, 0.1);
        const double slope = kind == 0   ? double(alibi::slopes<Accumulator>(heads_)[h])
                             : kind == 1 ? 100 * moderate
                             : kind == 2 ? (any < 0 ? any : 0)
                                         : moderate;
        slopes_(b, h) = Accumulator(slope);
      }
  }
  double scale() const { return options_.scale.value_or(1 / std::sqrt(double(head_dim_))); }
  Index position(Index query) const { return query + options_.mask.query_offset.value_or(keys_ - queries_); }

  void choose_numbers() {
    q_ = Tensor4<T>(batch_, heads_, queries_, head_dim_);
    k_ = Tensor4<T>(batch_, kv_heads_, keys_, head_dim_);
    v_ = Tensor4<T>(batch_, kv_heads_, keys_, pieces_ + kColumns);
    const Index group = heads_ / kv_heads_;
    for (Index b = 0; b < batch_; b++)
      for (Index kv = 0; kv < kv_heads_; kv++) {
        auto q = random_.matrix<double>(group * queries_, head_dim_), k = random_.matrix<double>(keys_, head_dim_);
        apply_kind(q, k, double(slopes_(b, kv * group)));
        round_into(&q_(b, kv * group, 0, 0), q);
        round_into(&k_(b, kv, 0, 0), k);
        for (Index j = 0; j < keys_; j++)
          for (Index d = 0; d < pieces_; d++) v_(b, kv, j, d) = T(d == j / kPiece ? kMark : 0.);
        for (Index d = 0; d < kColumns; d++) {
          auto& [low, high] = value_ranges_.emplace_back(kInfinity, -kInfinity);
          for (Index j = 0; j < keys_; j++) {
            const double x = double(v_(b, kv, j, pieces_ + d) = T(random_.normal()));
            low = std::min(low, x), high = std::max(high, x);
          }
        }
      }
  }
  static void round_into(T* to, const RowMatrix<double>& x) {
    for (Index i = 0; i < x.size(); i++) to[i] = T(kHalf ? std::clamp(x.data()[i], -6e4, 6e4) : x.data()[i]);
  }

  static RowMatrix<double> direction(RowMatrix<double> x) {
    double square = 0;  // Eigen's norm() causes a warning of g++ 12 about its own intrinsics
    for (Index d = 0; d < x.size(); d++) square += x(0, d) * x(0, d);
    return x /= std::sqrt(square);
  }

  // Changes normal queries and keys according to kind_.
  void apply_kind(RowMatrix<double>& q, RowMatrix<double>& k, double slope) {
    const Index n = keys_;
    const auto any = [&](Index begin, Index end) { return random_.integer(begin, std::max(begin, end - 1)); };
    const double tiny = kHalf ? 0x1p-24 : kBfloat ? 0x1p-133 : double(std::numeric_limits<Accumulator>::denorm_min());
    switch (kind_) {
      case Kind::normal:
        break;
      case Kind::far_outliers:
        for (int i = 0; i < 5; i++) k.row(any(0, n / 2)) *= 20;
        break;
      case Kind::first_tile:
        for (int i = 0; i < 3; i++) k.row(any(0, std::min<Index>(n, 64))) *= random_.uniform(10, 100);
        break;
      case Kind::one_huge:
        k.row(any(0, n)) *= 1000;
        break;
      case Kind::mean_10:
      case Kind::mean_1000:
        k.rowwise() += (kind_ == Kind::mean_10 ? 10 : 1000) * random_.matrix<double>(1, head_dim_).row(0);
        break;
      case Kind::identical:
        for (Index j = 1; j < n; j++) k.row(j) = k.row(0);
        break;
      case Kind::zero_queries:
        for (Index i = 0, step = any(0, 2) ? 3 : 1; i < q.rows(); i += step) q.row(i).setZero();
        break;
      case Kind::denormal:
        for (RowMatrix<double>* x : {&q, &k})
          if (random_.chance(0.6))
            for (Index i = 0; i < x->size(); i++) x->data()[i] = std::round(100 * x->data()[i]) * tiny;
        break;
      case Kind::alternating:
        for (Index j = 1; j < n; j++) k.row(j) = -k.row(j - 1);
        break;
      case Kind::aligned:
        for (int i = 0; i < 5; i++) k.row(any(0, n / 2)) = random_.uniform(0, 30) * direction(q.row(any(0, q.rows())));
        break;
      case Kind::threshold:
      case Kind::two_sided:
      case Kind::farthest:
      case Kind::compensated:
        return point_far_keys(q, k, slope);
      case Kind::decaying:
      case Kind::growing:
        for (Index j = 0; j < n; j++)
          k.row(j) *= std::exp((kind_ == Kind::decaying ? 4. : -4.) * (0.5 - double(j) / double(n)));
        break;
    }
  }

  // All queries of a group have the direction u, close keys are short, and keys from some distance on are R u. R is
  // chosen so that the mass of all keys from there on is near one of the tolerances: R |q| τ = m distance + ln
  // tolerance, plus noise.
  void point_far_keys(RowMatrix<double>& q, RowMatrix<double>& k, double slope) {
    const RowMatrix<double> u = direction(random_.matrix<double>(1, head_dim_));
    const double length = random_.uniform(0.5, 2) * std::sqrt(double(head_dim_));
    const double noise = random_.chance(0.5) ? 0 : 0.05;
    q = (noise * q).rowwise() + length * u.row(0);
    if (random_.chance(0.4))  // most queries are shorter, a few are longer
      for (Index i = 0; i < q.rows(); i++) q.row(i) *= random_.chance(0.03) ? 2 : random_.uniform(0, 1);
    k *= random_.chance(0.3) ? 0 : 0.1;
    const Index from = kind_ == Kind::farthest ? 0 : random_.integer(0, keys_ - 1);  // the closest of the distant keys
    const bool all_alike = kind_ == Kind::compensated;
    const double tolerance = kTolerances[std::size_t(random_.integer(0, kTolerances.size() - 1))];
    const double share = std::log(tolerance / (all_alike ? double(from + 1) : 1)) + random_.normal();
    for (Index j = 0; j <= from; j++) {
      const double distance = std::max(0., double(position(queries_ - 1) - (all_alike ? j : from)));
      const double logit = std::clamp(slope * distance + share, 0., 2000.);
      const double radius = scale() == 0 ? 1 : logit / (length * scale());
      k.row(j) = (kind_ == Kind::two_sided && j % 2 ? -radius : radius) * u.row(0);
    }
  }

  // Checks the rows of one head against every guarantee.
  void check_head(Index head, const Result& dense, const std::vector<Result>& pruned) {
    const Index b = head / heads_, h = head % heads_, kv = h / (heads_ / kv_heads_);
    const RowMatrix<double> scores = products(&q_(b, h, 0, 0), &k_(b, kv, 0, 0));
    std::array<double, kTolerances.size()> pruned_mass = {};
    for (Index i = 0; i < queries_; i++) {
      double largest = 0;  // the largest |τ q·k|
      const std::vector<Long> share = shares(scores, b, h, i, largest);
      if (share.empty()) continue;
      for (std::size_t t = 0; t < pruned.size(); t++) {
        const T* output = &pruned[t].output(b, h, i, 0);
        Long sum = 0;
        for (Index piece = 0; piece < pieces_; piece++)
          if (double(output[piece]) == 0) sum += share[std::size_t(piece)];
        pruned_mass[t] = std::max(pruned_mass[t], double(sum));
        compare(head, i, kTolerances[t], dense, pruned[t], std::max(1., largest));
      }
    }
    for (std::size_t t = 0; t < pruned.size(); t++) {
      const alibi::PruningStats &stats = pruned[t].stats[std::size_t(head)], &all = dense.stats[std::size_t(head)];
      require(pruned_mass[t] <= kTolerances[t] * (1 + 1e-9) + undetected_mass(), head, "pruned mass ", pruned_mass[t],
              " at ", kTolerances[t]);
      require(pruned_mass[t] <= stats.mass_bound * (1 + 1e-9) + undetected_mass(), head, "pruned mass ", pruned_mass[t],
              ", mass_bound ", stats.mass_bound);
      require(stats.mass_bound <= kTolerances[t], head, "mass_bound ", stats.mass_bound, " at ", kTolerances[t]);
      require(stats.tiles_total == all.tiles_total && stats.tiles_computed <= all.tiles_computed, head, "computed ",
              stats.tiles_computed, " of ", stats.tiles_total, "; without pruning ", all.tiles_computed);
      require(all.tiles_computed == all.tiles_total && all.mass_bound == 0, head, "without pruning, computed ",
              all.tiles_computed, " of ", all.tiles_total, ", bound ", all.mass_bound);
      outcome_.pruned_mass[t] = std::max(outcome_.pruned_mass[t], pruned_mass[t]);
      outcome_.computed[t] += stats.tiles_computed;
    }
    outcome_.total += dense.stats[std::size_t(head)].tiles_total;
  }

  // τ q·k of one head, in double, whose rounding is far below every tolerance.
  RowMatrix<double> products(const T* q, const T* k) const {
    RowMatrix<double> transposed(head_dim_, keys_), scores = RowMatrix<double>::Zero(queries_, keys_);
    for (Index j = 0; j < keys_; j++)
      for (Index d = 0; d < head_dim_; d++) transposed(d, j) = double(k[j * head_dim_ + d]);
    for (Index i = 0; i < queries_; i++)
      for (Index d = 0; d < head_dim_; d++) {
        const double x = scale() * double(q[i * head_dim_ + d]), *row = &transposed(d, 0);
        for (Index j = 0; j < keys_; j++) (&scores(i, 0))[j] += x * row[j];
      }
    return scores;
  }

  // Each piece's share of the softmax mass of query i; empty for a query that sees no key.
  std::vector<Long> shares(const RowMatrix<double>& scores, Index b, Index h, Index i, double& largest) const {
    const auto slope = double(slopes_(b, h));
    const Index p = position(i), nearest = alibi::reference::distance(p, std::clamp<Index>(p, 0, keys_ - 1));
    std::vector<Long> logits(std::size_t(keys_), -Long(kInfinity));
    Long most = -Long(kInfinity);
    for (Index j = 0; j < keys_; j++) {
      if (!alibi::reference::sees(options_.mask, p, j) || !bias_.sees(b, h, p, j)) continue;
      Long& s = logits[std::size_t(j)];
      s = Long(scores(i, j)) + bias_(slope, b, h, i, p, j, nearest);
      most = std::max(most, s);
      largest = std::max(largest, std::abs(scores(i, j)));
    }
    if (most == -Long(kInfinity)) return {};
    std::vector<Long> share(std::size_t(pieces_), 0);
    Long sum = 0;
    for (Index j = 0; j < keys_; j++) {
      const Long s = logits[std::size_t(j)] - most;
      if (s < -120) continue;  // less than 1e-52
      const Long weight = std::exp(s);
      share[std::size_t(j / kPiece)] += weight;
      sum += weight;
    }
    for (Long& x : share) x /= sum;
    return share;
  }

  // |Δo| <= tolerance · (largest - smallest value) in every column, and 0 <= Δlse <= -ln(1 - tolerance), plus rounding.
  // The rounding is in units of the largest logit of the row, because the two sums are relative to different
  // references.
  void compare(Index head, Index i, double tolerance, const Result& dense, const Result& pruned, double logit) {
    const Index b = head / heads_, h = head % heads_, kv = h / (heads_ / kv_heads_);
    const double unit = 32 * double(std::numeric_limits<Accumulator>::epsilon()) * logit;
    const double stored = kBfloat ? 0x1p-7 : kHalf ? 0x1p-10 : 0;  // probabilities and outputs in T
    for (Index d = 0; d < kColumns; d++) {
      const auto [low, high] = value_ranges_[std::size_t((b * kv_heads_ + kv) * kColumns + d)];
      const double is = double(pruned.output(b, h, i, pieces_ + d)), was = double(dense.output(b, h, i, pieces_ + d));
      const double bound = tolerance * (high - low) + (unit + stored) * std::max(high, -low);
      require(std::abs(is - was) <= bound, head, "output ", is, " of query ", i, " at ", tolerance,
              "; without pruning ", was);
    }
    const double is = double(pruned.lse[std::size_t(head * queries_ + i)]),
                 was = double(dense.lse[std::size_t(head * queries_ + i)]);
    const double rounding = unit + 4 * double(std::numeric_limits<Accumulator>::epsilon()) * std::abs(was);
    require(is - was <= rounding && was - is <= -std::log1p(-tolerance) + rounding, head, "lse ", is, " of query ", i,
            " at ", tolerance, "; without pruning ", was);
  }

  template <class... Parts>
  void require(bool kept, Index head, const Parts&... parts) {
    if (kept || !outcome_.violation.empty()) return;
    std::ostringstream text;
    text << std::setprecision(12) << "head " << head << ": ";
    (text << ... << parts);
    outcome_.violation = text.str();
  }

  Random random_;
  Kind kind_;
  Index batch_, kv_heads_, heads_, queries_, keys_, head_dim_, pieces_;
  Tensor4<T> q_, k_, v_;
  std::vector<std::pair<double, double>>
      value_ranges_;  // the smallest and the largest value, [batch, kv_heads, kColumns]
  RowMatrix<Accumulator> slopes_;
  Bias bias_;
  alibi::Options options_;
  Outcome outcome_;
};

}  // namespace test
