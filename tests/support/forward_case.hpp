// A random call of attention from a seed, and its errors against the reference.
#pragma once

#include <alibi/reference.hpp>
#include <sstream>
#include <utility>

#include "common.hpp"

namespace test {

// An array [batch, heads, tokens, head_dim] of a random layout that owns its memory. The memory outside the array is
// NaN: a read outside shows in the result, and a write outside shows here.
template <class T>
class Strided {
 public:
  enum class Order { kHeadsFirst, kTokensFirst };

  Strided(Random& random, Index batch, Index heads, Index tokens, Index head_dim)
      : order_(random.chance(0.5) ? Order::kHeadsFirst : Order::kTokensFirst) {
    const Index gap = random.chance(0.5) ? 0 : random.integer(1, 5), row = head_dim + gap;  // as in a fused QKV
    const Index between = random.chance(0.7) ? 0 : random.integer(1, 40);
    const bool heads_first = order_ == Order::kHeadsFirst;
    const Index token_stride = heads_first ? row : heads * row,
                head_stride = heads_first ? tokens * row + between : row;
    const Index batch_stride = heads * tokens * row + heads * between;
    memory_.assign(std::size_t(batch * batch_stride + gap + 1), std::numeric_limits<T>::quiet_NaN());
    view_ = alibi::view(memory_.data() + gap, {batch, heads, tokens, head_dim},
                        {batch_stride, head_stride, token_stride, 1});
  }

  alibi::View<T> view() const { return view_; }
  T& operator()(Index b, Index h, Index i, Index d) const {
    return view_.data[b * view_.batch_stride + h * view_.head_stride + i * view_.token_stride + d];
  }
  template <class Body>
  void for_each(Body body) const {
    for (Index b = 0; b < view_.batch; b++)
      for (Index h = 0; h < view_.heads; h++)
        for (Index i = 0; i < view_.tokens; i++)
          for (Index d = 0; d < view_.head_dim; d++) body((*this)(b, h, i, d));
  }
  /// Returns the numbers as a contiguous array, and checks that the rest of the memory is NaN.
  std::vector<double> take() {
    std::vector<double> values;
    for_each([&](T& x) { values.push_back(double(std::exchange(x, std::numeric_limits<T>::quiet_NaN()))); });
    for (const T x : memory_) EXPECT_TRUE(std::isnan(x)) << "written outside the output";
    return values;
  }

 private:
  Order order_;
  std::vector<T> memory_;
  alibi::View<T> view_;
};

struct Shape {
  Index batch, kv_heads, group, queries, keys, head_dim, value_dim;
};

inline Index size(Random& random) {
  switch (random.integer(0, 4)) {
    case 0:
      return random.integer(0, 3);
    case 1:
      return random.integer(1, 17);
    case 2:
      return random.integer(15, 70);
    case 3:
      return random.integer(60, 200);
    default:
      return random.integer(120, 700);
  }
}

inline Shape random_shape(Random& random) {
  constexpr double kMaxWork = 5e6;  // multiply-adds of the reference
  for (;;) {
    Shape s{random.integer(0, 9) ? random.integer(1, 3) : 0,
            random.integer(0, 19) ? random.integer(1, 3) : 0,
            random.integer(1, 4),
            size(random),
            0,
            0,
            0};
    s.keys = random.chance(0.5) ? s.queries : size(random);
    if (random.chance(0.15)) s.queries = 1;
    s.head_dim = random.chance(0.3) ? 8 * random.integer(1, 16) : random.integer(1, 100);
    s.value_dim = random.chance(0.6) ? s.head_dim : random.integer(1, 100);
    if (double(s.batch * s.kv_heads * s.group * s.queries * s.keys) * double(s.head_dim + s.value_dim) <= kMaxWork)
      return s;
  }
}

inline alibi::Mask random_mask(Random& random, const Shape& s) {
  alibi::Mask mask{.causal = random.chance(0.6)};
  if (random.chance(0.4)) mask.window = random.integer(1, random.chance(0.5) ? 10 : s.keys + 10);
  if (random.chance(0.4)) mask.query_offset = random.integer(-s.queries - 10, s.keys + 10);
  if (random.chance(0.1))
    mask.query_offset = (random.chance(0.5) ? 1 : -1) * (Index(1) << (random.chance(0.5) ? 26 : 40));
  if (mask.causal && random.chance(0.3)) mask.prefix = random.integer(0, s.keys + 10);
  if (random.chance(0.3)) mask.sinks = random.integer(0, random.chance(0.5) ? 10 : s.keys + 10);
  return mask;
}

// [batch, heads], all of one kind. The authors' slopes and 0 are the same for the whole batch.
template <class T>
RowMatrix<T> random_slopes(Random& random, const Shape& s) {
  const Index heads = s.kv_heads * s.group, kind = random.integer(0, 6);
  RowMatrix<T> m(s.batch, heads);
  const auto authors = alibi::slopes<T>(heads, random.chance(0.5) ? 8 : 16);
  for (Index b = 0; b < m.rows(); b++)
    for (Index h = 0; h < heads; h++) {
      const double x = random.uniform(0, 1);
      const double values[] = {double(authors[h]), double(authors[h]), 0, -0.1 * x, 100 * x, 1e4 * x, 2 * x - 1};
      m(b, h) = T(values[kind]);
    }
  return m;
}

inline void describe(std::ostream& text, const alibi::Mask& mask) {
  text << (mask.causal ? ", causal" : ", bidirectional");
  if (mask.window) text << ", window " << *mask.window;
  if (mask.query_offset) text << ", query_offset " << *mask.query_offset;
  if (mask.prefix > 0) text << ", prefix " << mask.prefix;
  if (mask.sinks) text << ", sinks " << *mask.sinks;
}

/// Describes a call so that it can be repeated.
template <class T>
std::string describe(const Shape& s, const alibi::Options& options, const RowMatrix<T>& slopes) {
  std::ostringstream text;
  text << "q [" << s.batch << ", " << s.kv_heads * s.group << ", " << s.queries << ", " << s.head_dim << "], k ["
       << s.batch << ", " << s.kv_heads << ", " << s.keys << ", " << s.head_dim << "], value_dim " << s.value_dim;
  describe(text, options.mask);
  for (const Index offset : options.query_offsets) text << ", query_offsets " << offset;
  for (const Index prefix : options.prefixes) text << ", prefixes " << prefix;
  if (options.scale) text << ", scale " << *options.scale;
  if (options.bf16_dot) text << ", bf16_dot " << options.bf16_dot;
  text << ", slots " << options.executor.max_concurrency() << ", slopes";
  for (Index i = 0; i < std::min<Index>(slopes.size(), 8); i++) text << ' ' << slopes.data()[i];
  if (slopes.size() > 8) text << " ...";
  return text.str();
}

/// Errors in units of the bound; at most 1 is correct.
struct Worst {
  double output = 0, lse = 0;
  std::string output_case, lse_case;

  void see(const Worst& error, const std::string& description) {
    if (error.output > output) output = error.output, output_case = description;
    if (error.lse > lse) lse = error.lse, lse_case = description;
  }
};

/// One random call of attention.
template <class T>
struct Call {
  Shape s;
  Strided<T> q, k, v, output;
  std::vector<T> lse;
  RowMatrix<T> slopes;
  alibi::Options options;
  std::vector<Index> query_offsets, prefixes;  // [batch], for some calls

  Call(Random& random, const Shape& shape)
      : s(shape),
        q(random, s.batch, s.kv_heads * s.group, s.queries, s.head_dim),
        k(random, s.batch, s.kv_heads, s.keys, s.head_dim),
        v(random, s.batch, s.kv_heads, s.keys, s.value_dim),
        output(random, s.batch, s.kv_heads * s.group, s.queries, s.value_dim),
        lse(std::size_t(s.batch * s.kv_heads * s.group * s.queries), std::numeric_limits<T>::quiet_NaN()),
        slopes(random_slopes<T>(random, s)) {
    options.mask = random_mask(random, s);
    if (random.chance(0.3)) options.scale = random.uniform(-1, 1) * 2 / std::sqrt(double(s.head_dim));
    if (random.chance(0.3))
      options.executor = alibi::Executor(int(random.integer(2, 5)), [](Index count, alibi::Task task) {
        for (Index i = count; i-- > 0;) task(i);
      });
    for (const Strided<T>* x : {&q, &k, &v}) x->for_each([&](T& value) { value = T(random.normal()); });
    for (Index b = 0; b < s.batch; b++) {
      query_offsets.push_back(random.integer(-s.queries - 10, s.keys + 10));
      prefixes.push_back(random.integer(0, s.keys + 10));
    }
    if (random.chance(0.2)) options.query_offsets = query_offsets, options.mask.query_offset.reset();
    if (options.mask.causal && random.chance(0.2)) options.prefixes = prefixes, options.mask.prefix = 0;
  }
  Call(Call&&) = default;  // no copies, because the options refer to the lists

  std::string description() const { return describe(s, options, slopes); }
  alibi::reference::MasksOfBatch masks() const {
    alibi::reference::MasksOfBatch all(options.mask, s.batch);
    for (std::size_t b = 0; b < all.masks.size(); b++) {
      if (!options.query_offsets.empty()) all.masks[b].query_offset = options.query_offsets[b];
      if (!options.prefixes.empty()) all.masks[b].prefix = options.prefixes[b];
    }
    return all;
  }

  /// The bounds grow with the largest logit; the bound of the output also grows with the largest value, and the bound
  /// of an lse with the lse. They grow only above `order_one`, which calls of normal numbers reach.
  Worst run() {
    constexpr double order_one = 6;
    alibi::attention_with_lse_into(output.view(), lse, q.view(), k.view(), v.view(), slopes, options);
    const auto expected = alibi::reference::attention(q.view(), k.view(), v.view(), slopes, masks(), options.scale);
    const double logit = std::max(1., largest_logit() / order_one);
    double value = order_one;
    v.for_each([&](T x) { value = std::max(value, double(std::abs(x))); });

    Worst worst;
    worst.output = distance(output.take(), expected.output) / (kBound<T> * logit * value / order_one);
    for (std::size_t i = 0; i < lse.size(); i++) {
      const double is = double(lse[i]), should = expected.lse[Index(i)];
      const double error = is == should ? 0. : std::abs(is - should) / (kBound<T> * std::max(logit, std::abs(should)));
      worst.lse = std::max(worst.lse, std::isnan(error) ? kInfinity : error);
    }
    return worst;
  }

  double largest_logit() const {
    double largest = 0;
    const double scale = std::abs(options.scale.value_or(1 / std::sqrt(double(s.head_dim))));
    for (Index b = 0; b < s.batch; b++)
      for (Index h = 0; h < s.kv_heads * s.group; h++)
        for (Index i = 0; i < s.queries; i++)
          for (Index j = 0; j < s.keys; j++)
            largest = std::max(
                largest, scale * std::abs(alibi::reference::dot(&q(b, h, i, 0), &k(b, h / s.group, j, 0), s.head_dim)));
    return largest;
  }
};

/// Checks calls against the bounds and prints the worst error.
template <class T>
class AgainstReference : public testing::Test {
 protected:
  /// Whether the call is within the bounds.
  bool expect(Call<T>& call, const std::string& what) {
    const std::string description = what + ": " + call.description();
    const Worst error = call.run();
    EXPECT_LE(error.output, 1) << "output, in units of the bound: " << description;
    EXPECT_LE(error.lse, 1) << "lse, in units of the bound: " << description;
    worst_.see(error, description);
    return error.output <= 1 && error.lse <= 1;
  }
  void TearDown() override {
    if (worst_.output_case.empty()) return;
    const std::string output = std::to_string(worst_.output), lse = std::to_string(worst_.lse);
    this->RecordProperty("worst_output_of_bound", output);
    this->RecordProperty("worst_lse_of_bound", lse);
    std::cout << "bound " << kBound<T> << "\n  worst output " << output << " of it: " << worst_.output_case
              << "\n  worst lse    " << lse << " of it: " << worst_.lse_case << "\n";
  }

 private:
  Worst worst_;
};

}  // namespace test
