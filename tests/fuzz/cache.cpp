// A KvCache through any history of appends, truncations, clones, forks, files and queries, against the definition over
// all keys that were ever appended, including the evicted ones.
#include <alibi/cached_attention.hpp>
#include <alibi/kernel/decode/task.hpp>
#include <alibi/kv_cache.hpp>
#include <alibi/kv_cache_file.hpp>
#include <sstream>

#include "call.hpp"
#include "targets.hpp"

namespace fuzz {
namespace {

using alibi::KvCacheConfig;

/// Whether a call must be accepted or refused; `either` where rounding decides.
enum class Verdict { right, wrong, either };
Verdict operator&(Verdict a, Verdict b) {
  if (a == Verdict::wrong || b == Verdict::wrong) return Verdict::wrong;
  return a == Verdict::either ? a : b;
}
Verdict verdict(bool right) { return right ? Verdict::right : Verdict::wrong; }
/// x <= most, where x may be wrong by 2^-11 of it.
Verdict at_most(double x, double most) {
  if (x <= most) return Verdict::right;
  return x <= most + std::abs(most) * 0x1p-11 ? Verdict::either : Verdict::wrong;
}

KvCacheConfig config_of(Input& in, Index& group) {
  const auto counts = in.byte();
  constexpr std::array<Index, 8> dims = {4, 1, 8, 3, 16, 17, 33, 70}, rollbacks = {0, 1, 64, 5, 200, 3, 1 << 20, 64};
  KvCacheConfig config{.batch = 1 + counts % 4 / 3, .kv_heads = 1 + counts / 4 % 4 / 3};
  group = std::array<Index, 4>{1, 2, 1, 5}[counts / 16 % 4];
  config.head_dim = in.one_of(dims);
  config.value_dim = in.one_of(dims);
  config.rollback = in.one_of(rollbacks);
  const auto kind = in.byte();
  if (kind & 1) config.window = in.integer(1, 400);
  if (kind & 2) {
    constexpr std::array<std::optional<double>, 5> tolerances = {std::nullopt, 1e-2, 0.3, 1e-9, 0.9};
    alibi::Eviction eviction{.query_norm = in.byte() / 16., .tolerance = in.one_of(tolerances)};
    const auto slopes = slopes_of<float>(in, config.kv_heads * group);
    eviction.slopes.assign(slopes.begin(), slopes.end());
    if (in.flag()) eviction.scale = scale_of(in);
    config.eviction = eviction;
  }
  if (!(kind & 3) || kind & 4) config.capacity = in.integer(1, 500);
  if (kind & 8) config.sinks = in.integer(0, in.flag() ? 8 : 200);
  switch (in.byte()) {  // a few values make the configuration invalid
    case 1:
      config.batch = in.small();
      break;
    case 2:
      config.kv_heads = in.small();
      break;
    case 3:
      config.head_dim = -in.byte();
      break;
    case 4:
      config.value_dim = -in.byte();
      break;
    case 5:
      config.capacity = in.bits<Index>();
      break;
    case 6:
      config.window = in.bits<Index>();
      break;
    case 7:
      config.rollback = in.bits<Index>();
      break;
    case 8:
      if (config.eviction) config.eviction->query_norm = special<double>(in);
      break;
    case 9:
      if (config.eviction) config.eviction->tolerance = special<double>(in);
      break;
    case 10:
      if (config.eviction) config.eviction->slopes.pop_back();
      break;
    case 11:
      config.sinks = in.bits<Index>();
      break;
    default:;
  }
  return config;
}

bool is_right(const KvCacheConfig& config) {
  const auto size = [](Index x) { return 1 <= x && x <= Index(1) << 31; };
  if (!size(config.batch) || !size(config.kv_heads) || !size(config.head_dim)) return false;
  if (config.value_dim != 0 && !size(config.value_dim)) return false;
  if (config.capacity < 0 || config.capacity > Index(1) << 37) return false;
  if (config.capacity == 0 && !config.window && !config.eviction) return false;
  if (config.window.value_or(1) < 1 || config.rollback < 0) return false;
  if (config.sinks < 0 || config.sinks > Index(1) << 37) return false;
  if (!config.eviction) return true;
  const alibi::Eviction& eviction = *config.eviction;
  const auto heads = Index(eviction.slopes.size());
  return std::isfinite(eviction.query_norm) && eviction.query_norm > 0 && heads > 0 && heads % config.kv_heads == 0 &&
         all_finite(eviction.slopes) && std::isfinite(eviction.scale.value_or(1)) &&
         eviction.tolerance.value_or(0.5) > 0 && eviction.tolerance.value_or(0.5) < 1;
}

template <class S>
class History {
 public:
  using T = Sum<S>;
  using Cache = alibi::KvCache<S>;

  History(Cache cache, Index group)
      : cache_(std::move(cache)),
        config_(cache_.config()),
        group_(group),
        sequences_(std::size_t(config_.batch)),
        heads_(std::size_t(config_.batch * config_.kv_heads)) {}

  void run(Input& in) {
    constexpr int kMaxSteps = 40;
    for (int step = 0; step < kMaxSteps && in.left() > 0 && work_ < 4e6; step++) {
      const auto kind = in.byte();
      switch (kind % 8) {
        case 0:
        case 1:
        case 2:
          append(in);
          break;
        case 3:
          truncate(in);
          break;
        case 4:
          rearrange(in, kind / 8);
          break;
        default:
          in.flag() ? attend<T>(in) : attend<S>(in);  // NOLINT(bugprone-branch-clone): S may be T
      }
      expect_lengths();
    }
  }

 private:
  struct Sequence {
    Index length = 0;
    Index kept = 0;  // the largest length that truncate() may refuse to go below
  };
  struct Numbers {
    std::vector<double> k, v;  // of all tokens, as stored
  };
  struct Table {
    Index entries = 0, first = 0;
    std::vector<T> numbers = {};  // [heads][entries]; without entries, the bias has slopes
  };
  Numbers& numbers(Index b, Index kv) { return heads_[std::size_t(b * config_.kv_heads + kv)]; }
  Sequence& sequence(Index b) { return sequences_[std::size_t(b)]; }

  /// Everything observable about the cache except its keys. An error must not change it.
  std::vector<double> observable_state() const {
    std::vector<double> all = {double(cache_.bytes())};
    for (Index b = 0; b < config_.batch; b++) {
      all.insert(all.end(), {double(cache_.length(b)), double(cache_.min_length(b))});
      for (Index h = 0; h < config_.kv_heads; h++)
        all.insert(all.end(),
                   {double(cache_.first_key(b, h)), double(cache_.bytes(b, h)), cache_.evicted_tolerance(b, h)});
    }
    return all;
  }
  /// The result for a query that every cache accepts, without pruning.
  std::vector<T> answer() const {
    const Index heads = config_.eviction ? Index(config_.eviction->slopes.size()) : config_.kv_heads * group_,
                rows = config_.batch * heads;
    std::vector<S> q(std::size_t(rows * config_.head_dim), number<S>(0)), output(std::size_t(rows * config_.value_dim));
    std::vector<T> slopes(std::size_t(heads), T(0.125)), lse(static_cast<std::size_t>(rows));
    alibi::Options options{.tolerance = 0};
    if (config_.eviction) {
      std::transform(config_.eviction->slopes.begin(), config_.eviction->slopes.end(), slopes.begin(),
                     [](double slope) { return T(slope); });
      options.scale = 0;
    }
    const auto view = [&]<class X>(std::vector<X>& x, Index dim) {
      return alibi::view(x.data(), {config_.batch, heads, 1, dim}, {heads * dim, dim, dim, 1});
    };
    alibi::Workspace workspace;
    options.workspace = &workspace;
    alibi::attention_with_lse_into(view(output, config_.value_dim), lse, view(q, config_.head_dim), cache_, slopes,
                                   options);
    for (const S x : output) lse.push_back(T(x));
    return lse;
  }

  /// Runs a change, checks that an error changes nothing, and returns whether there was no error.
  template <class Change>
  bool changed(Verdict expected, const Change& change) {
    const std::vector<double> before = observable_state();
    const std::vector<T> answer_before = expected == Verdict::right ? std::vector<T>() : answer();
    std::string message;
    const bool done = accepted(change, message);
    check(expected == Verdict::either || done == (expected == Verdict::right),
          done ? "accepted, and should be refused" : "refused: ", message);
    if (!done) {
      check(same_bits(observable_state(), before), "the state differs after: ", message);
      check(expected == Verdict::right || same_bits(answer(), answer_before), "answers differently after: ", message);
    }
    return done;
  }

  void append(Input& in) {
    constexpr std::array<Index, 8> few = {1, 64, 1, 7, 2, 128, 63, 65};
    const Index tokens = in.flag() ? in.integer(0, 255) : in.one_of(few);
    in.flag() ? append<S>(in, tokens) : append<T>(in, tokens);  // NOLINT(bugprone-branch-clone): S may be T
  }
  template <class X>
  void append(Input& in, Index tokens) {
    const Array<X> k(in, true, config_.batch, config_.kv_heads, tokens, config_.head_dim),
        v(in, true, config_.batch, config_.kv_heads, tokens, config_.value_dim);
    fill(in, k), fill(in, v);
    insert_special(in, k), insert_special(in, v);
    alibi::View<const X> k_view = k.view(), v_view = v.view();
    std::vector<Index> counts(sequences_.size(), tokens);
    const bool counted = in.one_in(4);
    if (counted)
      for (Index& count : counts) count = in.one_in(64) ? in.small() : in.integer(0, tokens);
    bool right = true;
    for (Index b = 0; b < config_.batch; b++) {
      const Index count = counts[std::size_t(b)];
      right = right && 0 <= count && count <= tokens;
      right = right && (config_.capacity == 0 || count <= config_.capacity - sequence(b).length);
    }
    switch (in.byte()) {  // a few values make the call invalid
      case 1:
        k_view.batch++, v_view.batch++, right = false;
        break;
      case 2:
        v_view.heads++, right = false;
        break;
      case 3:
        v_view.tokens++, right = false;
        break;
      case 4:
        k_view.head_dim--, right = false;
        break;
      case 5:
        k_view.data = nullptr, right = right && tokens == 0;
        break;
      case 6:
        counts.push_back(0), right = right && !counted;
        break;
      default:;
    }
    log("append ", tokens, counted ? " counted" : "");
    if (!changed(verdict(right), [&] {
          if (counted)
            cache_.append(k_view, v_view, counts);
          else
            cache_.append(k_view, v_view);
        }))
      return;
    for (Index b = 0; b < config_.batch; b++) appended(b, b, k, v, counts[std::size_t(b)]);
  }
  /// Notes that sequence b has the first `count` tokens of a batch entry of k and v.
  template <class X>
  void appended(Index b, Index entry, const Array<X>& k, const Array<X>& v, Index count) {
    Sequence& of = sequence(b);
    if (count > 0 && (config_.window || config_.eviction)) of.kept = std::max(of.kept, of.length - config_.rollback);
    of.length += count;
    for (Index h = 0; h < config_.kv_heads; h++)
      for (Index i = 0; i < count; i++) {
        Numbers& to = numbers(b, h);
        for (Index d = 0; d < config_.head_dim; d++) to.k.push_back(double(S(k.row(entry, h, i)[d])));
        for (Index d = 0; d < config_.value_dim; d++) to.v.push_back(double(S(v.row(entry, h, i)[d])));
      }
  }

  void truncate(Input& in) {
    const Index b = in.integer(0, config_.batch - 1), length = sequence(b).length;
    const Index to = in.one_in(16)   ? in.small()
                     : in.one_in(16) ? 0
                     : in.flag()     ? length - in.byte() % 70
                                     : in.integer(0, length);
    const bool all = in.flag();
    const auto right = [&](Index of) {
      return 0 <= to && to <= sequence(of).length && (to == 0 || to >= cache_.min_length(of));
    };
    bool expected = true;
    for (Index of = 0; of < config_.batch; of++) expected = expected && ((!all && of != b) || right(of));
    log(all ? "truncate all to " : "truncate to ", to);
    if (!changed(verdict(expected), [&] { all ? cache_.truncate(to) : cache_.truncate(b, to); })) return;
    for (Index of = 0; of < config_.batch; of++) {
      if (!all && of != b) continue;
      sequence(of).length = to;
      if (to == 0) sequence(of).kept = 0;
      for (Index h = 0; h < config_.kv_heads; h++) {
        numbers(of, h).k.resize(std::size_t(to * config_.head_dim));
        numbers(of, h).v.resize(std::size_t(to * config_.value_dim));
      }
    }
  }

  void rearrange(Input& in, int kind) {
    switch (kind % 8) {
      case 1:
      case 2:
        fork(in);
        break;
      case 3:
      case 4:
        reorder(in);
        break;
      case 5:
        append_one(in);
        break;
      case 6:
      case 7:
        save_and_load(in);
        break;
      default:
        copy(in);
    }
  }

  /// Notes that sequence `to` is now what sequence `from` was in `before` and `numbers_before`.
  void become(Index to, Index from, const std::vector<Sequence>& before, const std::vector<Numbers>& numbers_before) {
    sequence(to) = before[std::size_t(from)];
    for (Index h = 0; h < config_.kv_heads; h++)
      numbers(to, h) = numbers_before[std::size_t(from * config_.kv_heads + h)];
  }

  bool is_sequence(Index b) const { return 0 <= b && b < config_.batch; }
  /// A sequence, or rarely any number.
  Index any_sequence(Input& in) { return in.one_in(32) ? in.small() : in.integer(0, config_.batch - 1); }

  void fork(Input& in) {
    const Index from = any_sequence(in), to = any_sequence(in);
    log("fork ", from, " to ", to);
    if (changed(verdict(is_sequence(from) && is_sequence(to)), [&] { cache_.fork(from, to); }))
      become(to, from, std::vector<Sequence>(sequences_), std::vector<Numbers>(heads_));
  }

  void reorder(Input& in) {
    std::vector<Index> indices;
    bool right = true;
    for (Index b = 0; b < config_.batch; b++) {
      indices.push_back(any_sequence(in));
      right = right && is_sequence(indices.back());
    }
    if (in.one_in(32)) indices.push_back(0), right = false;
    log("reorder");
    if (!changed(verdict(right), [&] { cache_.reorder(indices); })) return;
    const std::vector<Sequence> before = sequences_;
    const std::vector<Numbers> numbers_before = heads_;
    for (Index b = 0; b < config_.batch; b++) become(b, indices[std::size_t(b)], before, numbers_before);
  }

  void append_one(Input& in) {
    const Index to = any_sequence(in), tokens = in.integer(0, 255), batch = in.one_in(32) ? 2 : 1;
    const Array<T> k(in, true, batch, config_.kv_heads, tokens, config_.head_dim),
        v(in, true, batch, config_.kv_heads, tokens, config_.value_dim);
    fill(in, k), fill(in, v);
    log("append ", tokens, " to ", to);
    bool right = is_sequence(to) && batch == 1;
    right = right && (config_.capacity == 0 || tokens <= config_.capacity - sequence(to).length);
    const alibi::View<const T> k_view = k.view(), v_view = v.view();
    if (changed(verdict(right), [&] { cache_.append(to, k_view, v_view); })) appended(to, 0, k, v, tokens);
  }

  /// A sequence through a file, perhaps into another slot. A file that is cut off, or changed, is refused.
  void save_and_load(Input& in) {
    const Index from = in.integer(0, config_.batch - 1), to = in.integer(0, config_.batch - 1);
    log("save ", from, " and load ", to);
    std::ostringstream out;
    alibi::save(out, cache_, from);
    std::string file = out.str();
    const auto damage = in.byte() % 4;
    const auto at = std::size_t(in.bits<std::uint32_t>()) % file.size();
    if (damage == 2) file.resize(at);
    if (damage == 3) file[at] = char(file[at] ^ (1 << in.byte() % 8));
    std::istringstream stream(file);
    const auto load = [&] {
      try {
        alibi::load(stream, cache_, to);
      } catch (const std::runtime_error& error) {
        check(std::string(error.what()).starts_with("alibi: the saved sequence "), "an error's text is ", error.what());
        throw std::invalid_argument(error.what());
      }
    };
    if (changed(verdict(damage < 2), load))
      become(to, from, std::vector<Sequence>(sequences_), std::vector<Numbers>(heads_));
  }

  /// A clone has the same contents and is independent. A move preserves the contents.
  void copy(Input& in) {
    log("clone");
    const std::vector<T> before = answer();
    Cache other = cache_.clone();
    if (in.flag()) other.truncate(0);
    check(same_bits(answer(), before), "answers differently after a change of its clone");
    if (in.flag()) cache_ = cache_.clone();
    Cache moved = std::move(cache_);
    cache_ = std::move(moved);
    check(same_bits(answer(), before), "a clone answers differently");
  }

  void expect_lengths() {
    for (Index b = 0; b < config_.batch; b++) {
      const Sequence& of = sequence(b);
      const Index min_length = cache_.min_length(b);
      check(cache_.length(b) == of.length, "length ", cache_.length(b), "; expected ", of.length);
      check(0 <= min_length && min_length <= std::max<Index>(of.kept, 0), "min_length ", min_length,
            "; expected at most ", of.kept);
      for (Index h = 0; h < config_.kv_heads; h++) {
        const Index first = cache_.first_key(b, h);
        const double evicted = cache_.evicted_tolerance(b, h);
        check(first % 64 == 0 && 0 <= first && first <= of.length, "first key ", first, " of ", of.length);
        check(first == 0 || config_.window || evicted > 0, "first key ", first, ", although no key may leave");
        check(evicted == 0 || (first > 0 && evicted == *config_.eviction->tolerance), "evicted_tolerance ", evicted);
        // Everything that the query at min_length() - 1 sees is held, if only a window removes keys.
        if (first > 0 && evicted == 0)
          check(first <= std::max<Index>(min_length - *config_.window, 0), "first key ", first, ", min_length ",
                min_length, ", window ", *config_.window);
      }
    }
  }

  template <class E>
  void attend(Input& in);
  template <class E>
  Verdict verdict_of(const Array<E>& q, const std::vector<T>& slopes, Index heads, const alibi::Options& options,
                     const Lists& lists);
  template <class E>
  void judge(const Array<E>& q, const std::vector<E>& output, const std::vector<T>& lse,
             const std::vector<alibi::PruningStats>& stats, const std::vector<T>& slopes, const Table& table,
             const alibi::Options& options, const Lists& lists);

  template <class... Parts>
  void log(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    context() += "\n  " + text.str();
  }

  Cache cache_;
  KvCacheConfig config_;
  Index group_;
  std::vector<Sequence> sequences_;
  std::vector<Numbers> heads_;  // [batch][kv_heads]
  double work_ = 0;
};

/// Makes queries as short as the eviction requires, except for some.
template <class E>
void shorten(Input& in, const Array<E>& q, double most) {
  if (in.one_in(16)) return;
  const double part = in.one_in(4) ? 1 : in.byte() / 256.;
  q.for_each_row([&](E* row, Index, Index, Index) {
    double square = 0;
    for (Index d = 0; d < q.view().head_dim; d++) square += double(row[d]) * double(row[d]);
    const double norm = std::sqrt(square);
    if (!(norm > 0 && norm <= 1e300)) return;
    for (Index d = 0; d < q.view().head_dim; d++) row[d] = number<E>(double(row[d]) * (part * most / norm));
  });
}

template <class S>
template <class E>
Verdict History<S>::verdict_of(const Array<E>& q, const std::vector<T>& slopes, Index heads,
                               const alibi::Options& options, const Lists& lists) {
  if (heads % config_.kv_heads != 0 || !all_finite(slopes) || !are_right<T>(options, config_.head_dim))
    return Verdict::wrong;
  if (config_.window && options.mask.window.value_or(1) > *config_.window) return Verdict::wrong;
  if ((config_.window || config_.eviction) && options.mask.sinks.value_or(0) > config_.sinks) return Verdict::wrong;
  if (!lists.right) return Verdict::wrong;
  Verdict all = Verdict::right;
  const Index queries = q.view().tokens;
  for (Index b = 0; b < config_.batch; b++) {
    const Index first = lists.mask_of(options.mask, b).query_offset.value_or(sequence(b).length - queries);
    if (queries > 0 && cache_.min_length(b) > 0) all = all & verdict(first >= cache_.min_length(b) - 1);
    for (Index h = 0; h < heads && config_.eviction; h++) {  // the limits of the eviction apply from the first call on
      const alibi::Eviction& eviction = *config_.eviction;
      if (Index(eviction.slopes.size()) != heads) return Verdict::wrong;
      all = all & at_most(eviction.slopes[std::size_t(h)], double(slopes[std::size_t(b * heads + h)]));
      const double scale = options.scale.value_or(1 / std::sqrt(double(config_.head_dim)));
      all = all & at_most(std::abs(scale), std::abs(*eviction.scale));
      for (Index i = 0; i < queries; i++) {
        double square = 0;
        for (Index d = 0; d < config_.head_dim; d++) square += std::pow(double(q.row(b, h, i)[d]), 2);
        // A NaN norm is not too large. Its row is NaN.
        if (!std::isnan(square)) all = all & at_most(std::sqrt(square), eviction.query_norm);
      }
    }
  }
  return all;
}

template <class S>
template <class E>
void History<S>::attend(Input& in) {
  constexpr std::array<Index, 8> few = {1, 1, 2, 8, 9, 5, 20, 60};
  const Index queries = in.one_in(32) ? 0 : in.one_of(few);
  const Index heads = in.one_in(64) ? config_.kv_heads * group_ + 1 : config_.kv_heads * group_;
  const Array<E> q(in, true, config_.batch, heads, queries, config_.head_dim);
  Array<E> output(in, false, config_.batch, heads, queries, config_.value_dim);
  fill(in, q);
  insert_special(in, q);
  std::vector<T> slopes = slopes_of<T>(in, config_.batch * heads), lse(std::size_t(config_.batch * heads * queries));
  Index longest = 0;
  for (const Sequence& of : sequences_) longest = std::max(longest, of.length);
  alibi::Options options = options_of<E>(in, queries, longest);
  if (config_.eviction && !in.one_in(8)) {
    shorten(in, q, config_.eviction->query_norm);
    options.scale = config_.eviction->scale;
    for (std::size_t i = 0; i < slopes.size(); i++)
      slopes[i] = std::max(slopes[i], T(config_.eviction->slopes[i % config_.eviction->slopes.size()]));
  }
  if (options.mask.query_offset && !in.one_in(4)) options.mask.query_offset.reset();
  Table table;
  if (in.one_in(4)) {
    table.entries = in.integer(1, 300), table.first = in.small() - 20;
    const Index factor = in.byte(), range = 1 + in.byte() % 64;
    for (Index i = 0; i < heads * table.entries; i++) table.numbers.push_back(T(factor * i % range) / 4);
    if (in.one_in(16)) table.numbers[std::size_t(heads * table.entries / 2)] = special<T>(in);
    std::fill(slopes.begin(), slopes.end(), T(0));
  }
  if (options.mask.sinks && (config_.window || config_.eviction) && !in.one_in(8))
    options.mask.sinks = std::min(*options.mask.sinks, config_.sinks);
  const Lists lists(in, options, config_.batch, queries, longest);
  std::vector<alibi::PruningStats> stats(static_cast<std::size_t>(config_.batch * heads), {-1, -1, -1});
  if (!in.one_in(8)) options.pruning_stats = stats;
  {
    std::ostringstream text;
    text << "attend with " << queries << " queries of " << name_of<E>() << ", heads " << heads;
    describe(text, options);
    text << ", slopes";
    for (const T slope : slopes) text << ' ' << slope;
    if (table.entries > 0) text << ", table of " << table.entries << " from " << table.first;
    log(text.str());
  }

  const Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> slope_map(
      slopes.data(), config_.batch, heads);
  const auto call = [&](alibi::Workspace& workspace) {
    options.workspace = &workspace;
    output.erase();
    set_ones(lse);
    const alibi::RelativeBias<T> bias{table.numbers.data(), heads, table.entries, table.entries, table.first};
    if (table.entries > 0)
      alibi::attention_with_lse_into(output.view(), lse, q.view(), cache_, bias, options);
    else
      alibi::attention_with_lse_into(output.view(), lse, q.view(), cache_, slope_map, options);
  };
  Verdict expected = verdict_of(q, slopes, heads, options, lists);
  if (table.entries > 0) expected = expected & verdict(all_finite(table.numbers) && !config_.eviction);
  alibi::Workspace workspace;
  dirty(in, workspace);
  std::string message;
  const bool done = accepted([&] { call(workspace); }, message);
  check(expected == Verdict::either || done == (expected == Verdict::right),
        done ? "accepted, and should be refused" : "refused: ", message);
  if (!done) {
    check(output.erased() && all_ones(lse) &&
              std::all_of(stats.begin(), stats.end(), [](const auto& of) { return of.tiles_total == -1; }),
          "written before: ", message);
    return;
  }
  const std::vector<E> written = output.contents();
  const std::vector<T> written_lse = lse;
  const std::vector<alibi::PruningStats> written_stats = stats;
  check(output.erase_inside(), "written outside the output");
  if (in.one_in(4)) {
    options.executor = executor_of(1 + in.byte() % 7);
    call(workspace);
    check(same_bits(output.contents(), written) && same_bits(lse, written_lse), "other bits with another executor");
    for (std::size_t i = 0; i < stats.size(); i++)
      check(stats[i].mass_bound == written_stats[i].mass_bound &&
                stats[i].tiles_computed == written_stats[i].tiles_computed,
            "other pruning stats with another executor");
  }
  judge(q, written, written_lse, options.pruning_stats.empty() ? std::vector<alibi::PruningStats>() : written_stats,
        slopes, table, options, lists);
}

template <class S>
template <class E>
void History<S>::judge(const Array<E>& q, const std::vector<E>& output, const std::vector<T>& lse,
                       const std::vector<alibi::PruningStats>& stats, const std::vector<T>& slopes, const Table& table,
                       const alibi::Options& options, const Lists& lists) {
  const Index queries = q.view().tokens, heads = q.view().heads;
  const bool decodes = queries <= alibi::kernel::kMaxQueries;
  const std::vector<double> all_q = q.numbers(), all_lse(lse.begin(), lse.end());
  std::vector<double> all_output(output.size());
  std::transform(output.begin(), output.end(), all_output.begin(), [](E x) { return double(x); });
  const auto precision = Precision::of<E>(!decodes && std::is_same_v<E, S> && pairs<E>(options));
  for (Index b = 0; b < config_.batch; b++)
    for (Index h = 0; h < heads; h++) {
      const Index at = b * heads + h, kv = h / (heads / config_.kv_heads);
      const double evicted = cache_.evicted_tolerance(b, kv), share = std::max(share_of<T>(options.tolerance), evicted);
      if (!stats.empty()) {
        check_stats({&stats[std::size_t(at)], 1}, share);
        check(stats[std::size_t(at)].mass_bound >= evicted || queries == 0, "bound ", stats[std::size_t(at)].mass_bound,
              ", below evicted_tolerance ", evicted);
      }
      const Numbers& of = numbers(b, kv);
      Head head{all_q.data() + at * queries * config_.head_dim,
                of.k.data(),
                of.v.data(),
                queries,
                sequence(b).length,
                config_.head_dim,
                config_.value_dim,
                double(slopes[std::size_t(at)]),
                options.scale.value_or(1 / std::sqrt(double(config_.head_dim))),
                lists.mask_of(options.mask, b)};
      const auto first_entry = table.numbers.begin() + h * table.entries;
      head.table.assign(first_entry, first_entry + table.entries);
      head.first = table.first;
      if (config_.window && !head.mask.window) head.mask.window = config_.window;
      if (!head.mask.sinks) head.mask.sinks = config_.sinks;
      const double pruned_mass = stats.empty() ? share : stats[std::size_t(at)].mass_bound;
      const Answer answer{all_output.data() + at * queries * config_.value_dim,
                          all_lse.data() + at * queries,
                          pruned_mass,
                          share < 0x1p-100,
                          decodes ? 1 : alibi::kernel::kBlock<T>,
                          decodes};
      Judge(head, precision, answer).run();
      work_ += double(queries * head.keys * (config_.head_dim + config_.value_dim + 16));
    }
}

template <class S>
void run_history(Input& in) {
  Index group = 1;
  const KvCacheConfig config = config_of(in, group);
  std::ostringstream text;
  text << "KvCache<" << name_of<S>() << ">, batch " << config.batch << ", kv_heads " << config.kv_heads << ", group "
       << group << ", head_dim " << config.head_dim << ", value_dim " << config.value_dim << ", capacity "
       << config.capacity << ", rollback " << config.rollback << ", sinks " << config.sinks;
  if (config.window) text << ", window " << *config.window;
  if (config.eviction) {
    text << ", eviction with a norm of " << config.eviction->query_norm;
    if (config.eviction->tolerance) text << ", tolerance " << *config.eviction->tolerance;
    if (config.eviction->scale) text << ", scale " << *config.eviction->scale;
    text << ", slopes";
    for (const double slope : config.eviction->slopes) text << ' ' << slope;
  }
  context() = text.str();
  std::optional<alibi::KvCache<S>> cache;
  std::string message;
  const bool done = accepted([&] { cache.emplace(config); }, message);
  check(done == is_right(config), done ? "accepted, and should be refused" : "refused: ", message);
  if (done && config.batch <= 2 && config.kv_heads <= 2) History<S>(std::move(*cache), group).run(in);
}

}  // namespace

void run_cache(Input& in) {
  switch (in.byte() % 8) {
    case 3:
      return run_history<double>(in);
    case 4:
    case 5:
      return run_history<Eigen::bfloat16>(in);
    case 6:
      return run_history<Eigen::half>(in);
    default:
      return run_history<float>(in);
  }
}

}  // namespace fuzz
