// attention_with_lse_into() against the definition, and varlen and padded batches against it, bit by bit.
#include <alibi/tensor.hpp>
#include <alibi/varlen.hpp>

#include "call.hpp"
#include "targets.hpp"

namespace fuzz {
namespace {

using alibi::KeyRange;
template <class T>
using RowMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using SlopesMap = Eigen::Map<const RowMatrix<T>, 0, Eigen::OuterStride<>>;  // [sequences, heads]

template <class E>
struct Call {
  using T = Sum<E>;

  Shape s;
  Index sequences;
  Array<E> q_array, k_array, v_array, output_array;
  std::vector<T> lse, slopes;
  alibi::Options options;
  std::vector<alibi::PruningStats> stats;
  bool repeats_slopes, flawed = false;
  alibi::View<const E> q, k, v;
  alibi::View<E> output;

  Call(Input& in, const Shape& shape, Index sequence_count)
      : s(shape),
        sequences(sequence_count),
        q_array(in, true, s.batch, s.heads(), s.queries, s.head_dim),
        k_array(in, true, s.batch, s.kv_heads, s.keys, s.head_dim),
        v_array(in, true, s.batch, s.kv_heads, s.keys, s.value_dim),
        output_array(in, false, s.batch, s.heads(), s.queries, s.value_dim),
        lse(std::size_t(s.batch * s.heads() * s.queries)),
        stats(std::size_t(sequences * s.heads())),
        repeats_slopes(in.flag()),
        q(q_array.view()),
        k(k_array.view()),
        v(v_array.view()),
        output(output_array.view()) {
    slopes = slopes_of<T>(in, repeats_slopes ? s.heads() : sequences * s.heads());
    options = options_of<E>(in, s.queries, s.keys);
    if (!in.one_in(8)) options.pruning_stats = stats;
    fill(in, q_array), fill(in, k_array), fill(in, v_array);
    align(in, k_array, q_array);
    insert_special(in, q_array), insert_special(in, k_array), insert_special(in, v_array);
    erase();
  }

  void erase() {
    output_array.erase();
    set_ones(lse);
    stats.assign(stats.size(), {-1, -1, -1});
  }
  bool untouched() const {
    return output_array.erased() && all_ones(lse) &&
           std::all_of(stats.begin(), stats.end(), [](const auto& of) { return of.tiles_total == -1; });
  }
  bool right() const {
    return !flawed && s.head_dim > 0 && s.value_dim > 0 && (sequences == 0 || all_finite(slopes)) &&
           are_right<T>(options, s.head_dim);
  }
  Precision precision() const { return Precision::of<E>(pairs<E>(options)); }

  SlopesMap<T> slope_map() const {
    return {slopes.data(), sequences, s.heads(), Eigen::OuterStride<>(repeats_slopes ? 0 : s.heads())};
  }
  SlopesMap<T> slopes_at(Index sequence) const {
    return {slopes.data() + (repeats_slopes ? 0 : sequence * s.heads()), 1, s.heads(), Eigen::OuterStride<>(s.heads())};
  }

  void describe(const char* form, const std::string& more) const {
    std::ostringstream text;
    text << form << '<' << name_of<E>() << ">, q [" << s.batch << ", " << s.heads() << ", " << s.queries << ", "
         << s.head_dim << "], k [" << s.batch << ", " << s.kv_heads << ", " << s.keys << ", " << s.head_dim
         << "], value_dim " << s.value_dim;
    fuzz::describe(text, options);
    text << ", slopes";
    for (const T slope : slopes) text << ' ' << slope;
    context() = text.str() + more;
  }

  /// Makes the call invalid for a few byte values.
  void flaw(Input& in) {
    const bool rows = s.batch * s.heads() * s.queries > 0;
    flawed = true;
    switch (in.byte()) {  // most values change nothing
      case 1:
        k.batch++;
        return;
      case 2:
        v.batch++;
        return;
      case 3:
        k.head_dim++;
        return;
      case 4:
        k.heads = v.heads = s.heads() + 1;
        flawed = s.heads() > 0;
        return;
      case 5:
        v.tokens++;
        return;
      case 6:
        output.tokens++;
        return;
      case 7:
        output.head_dim++;
        return;
      case 8:
        flawed = rows && s.head_dim > 0 && s.value_dim > 0;
        if (flawed) output.data = const_cast<E*>(q.data);
        return;
      case 9:
        output.token_stride = 0;
        flawed = rows && s.queries > 1;
        return;
      case 10:
        lse.push_back(0);
        return erase();
      case 11:
        stats.push_back({});
        options.pruning_stats = stats;
        return erase();
      case 12:
        q.data = nullptr;
        flawed = rows;
        return;
      case 13:
        k.data = nullptr;
        flawed = s.batch * s.kv_heads * s.keys > 0;
        return;
      default:
        flawed = false;
    }
  }
};

/// The bits that a call wrote.
template <class E>
struct Written {
  std::vector<E> output;
  std::vector<Sum<E>> lse;
  std::vector<alibi::PruningStats> stats;

  explicit Written(const Call<E>& call) : output(call.output_array.contents()), lse(call.lse), stats(call.stats) {}
};

void expect_same(const alibi::PruningStats& is, const alibi::PruningStats& was, const char* what) {
  check(is.tiles_computed == was.tiles_computed && is.tiles_total == was.tiles_total && is.mass_bound == was.mass_bound,
        "pruning stats ", is.tiles_computed, " of ", is.tiles_total, ", bound ", is.mass_bound, "; ", what, ' ',
        was.tiles_computed, " of ", was.tiles_total, ", bound ", was.mass_bound);
}

/// Runs `attend`, checks that it is accepted exactly if the call is valid, and returns whether it was.
template <class E, class Attend>
bool run(Input& in, Call<E>& call, bool right, const Attend& attend) {
  alibi::Workspace workspace;
  dirty(in, workspace);
  std::string message;
  call.options.workspace = &workspace;
  const bool done = accepted(attend, message);
  call.options.workspace = nullptr;
  check(done == right, done ? "accepted, and should be refused" : "refused: ", message);
  if (!done) check(call.untouched(), "written before: ", message);
  return done;
}

template <class E>
void attend_forward(Call<E>& call) {
  alibi::attention_with_lse_into(call.output, call.lse, call.q, call.k, call.v, call.slope_map(), call.options);
}

/// Where numbers are beyond the range, checks that a result is NaN exactly where it is NaN without pruning.
template <class E>
void judge_beyond(Call<E>& call, const Written<E>& pruned, const std::vector<std::pair<Index, Index>>& heads_and_rows) {
  const Shape& s = call.s;
  call.options.tolerance = 0;
  attend_forward(call);
  const Written<E> dense(call);
  const std::vector<double> v = call.v_array.numbers();
  for (const auto& [h, row] : heads_and_rows) {
    const auto at = std::size_t(h * s.queries + row);
    check(is_nan(pruned.lse[at]) == is_nan(dense.lse[at]), "head ", h, ", row ", row, ": the lse is ", pruned.lse[at],
          "; without pruning ", dense.lse[at]);
    for (Index d = 0; d < s.value_dim; d++) {
      bool finite = true;
      for (Index j = 0; j < s.keys; j++)
        finite = finite && std::isfinite(v[std::size_t((h / s.group * s.keys + j) * s.value_dim + d)]);
      const E is = pruned.output[at * std::size_t(s.value_dim) + std::size_t(d)],
              was = dense.output[at * std::size_t(s.value_dim) + std::size_t(d)];
      check(!finite || is_nan(is) == is_nan(was), "head ", h, ", row ", row, ": output[", d, "] is ", double(is),
            "; without pruning ", double(was));
    }
  }
}

/// Two-sided slopes, with positions or without.
template <class T>
struct Sides {
  using Positions =
      Eigen::TensorMap<const Eigen::Tensor<double, 3, Eigen::RowMajor>>;  // [1 or batch, 1 or heads, tokens]

  std::vector<T> after;  // as many as the slopes of the call, which are those before
  bool has_positions, any_order = false;
  Index batch = 1, heads = 1;
  std::vector<double> keys, queries;

  template <class E>
  Sides(Input& in, const Call<E>& call) : after(slopes_of<T>(in, Index(call.slopes.size()))), has_positions(in.flag()) {
    const Shape& s = call.s;
    if (in.one_in(8) && !after.empty()) after[in.byte() % after.size()] = std::numeric_limits<T>::infinity();
    if (!has_positions) return;
    any_order = in.one_in(8);
    if (in.flag()) batch = s.batch;
    if (in.flag()) heads = s.heads();
    keys = positions_of(in, s.keys), queries = positions_of(in, s.queries);
  }
  std::vector<double> positions_of(Input& in, Index tokens) {
    constexpr std::array gaps = {1., 0.5, 3., 0., 1e-3, 1e6};
    const double gap = in.one_of(gaps), start = in.one_in(4) ? std::exp2(in.small() / 2.) : 0;
    const int jump = in.byte() % 64 + 1;
    std::vector<double> positions;
    for (Index row = 0; row < batch * heads; row++) {
      double at = start;
      for (Index i = 0; i < tokens; i++) {
        positions.push_back(at);
        at += i % jump == 0 ? in.byte() : gap;
      }
    }
    if (in.one_in(16) && !positions.empty()) positions[in.byte() % positions.size()] = number<double>(in.small());
    if (in.one_in(32) && !positions.empty()) positions[in.byte() % positions.size()] = special<double>(in);
    return positions;
  }
  bool are_right(const Shape& s, const std::vector<T>& before) const {
    for (const auto* side : {&before, &after})
      for (const T m : *side)
        if (!(m >= 0) || (has_positions && !std::isfinite(m))) return false;
    if (!has_positions) return true;
    for (const auto* x : {&keys, &queries}) {
      const Index tokens = x == &keys ? s.keys : s.queries;
      for (std::size_t i = 0; i < x->size(); i++) {
        if (!(std::abs((*x)[i]) <= 1e300)) return false;
        if (!any_order && Index(i) % tokens != 0 && (*x)[i] < (*x)[i - 1]) return false;
      }
    }
    return true;
  }
  Positions view(const std::vector<double>& x, Index tokens) const { return {x.data(), batch, heads, tokens}; }
  const double* row(const std::vector<double>& x, Index tokens, Index b, Index h) const {
    return has_positions ? x.data() + ((batch > 1 ? b : 0) * heads + (heads > 1 ? h : 0)) * tokens : nullptr;
  }
};

template <class E>
void attend_sides(Call<E>& call, const Sides<Sum<E>>& sides) {
  const Shape& s = call.s;
  const SlopesMap<Sum<E>> after(sides.after.data(), call.sequences, s.heads(),
                                Eigen::OuterStride<>(call.repeats_slopes ? 0 : s.heads()));
  const auto slopes = alibi::two_sided(call.slope_map(), after);
  const auto attend = [&](const auto& bias) {
    alibi::attention_with_lse_into(call.output, call.lse, call.q, call.k, call.v, bias, call.options);
  };
  if (!sides.has_positions) return attend(slopes);
  auto bias = alibi::positions(slopes, sides.view(sides.keys, s.keys), sides.view(sides.queries, s.queries));
  bias.any_order = sides.any_order;
  attend(bias);
}

template <class E>
void judge(Call<E>& call, const Written<E>& written, const Sides<Sum<E>>* sides = nullptr) {
  const Shape& s = call.s;
  const double share = share_of<Sum<E>>(call.options.tolerance);
  if (!call.options.pruning_stats.empty()) check_stats(written.stats, share);
  const std::vector<double> q = call.q_array.numbers(), k = call.k_array.numbers(), v = call.v_array.numbers(),
                            lse(written.lse.begin(), written.lse.end());
  std::vector<double> output(written.output.size());
  std::transform(written.output.begin(), written.output.end(), output.begin(), [](E x) { return double(x); });
  std::vector<std::pair<Index, Index>> beyond;
  for (Index h = 0; h < s.batch * s.heads(); h++) {
    const Index kv = h / s.group;
    Head head{q.data() + h * s.queries * s.head_dim,
              k.data() + kv * s.keys * s.head_dim,
              v.data() + kv * s.keys * s.value_dim,
              s.queries,
              s.keys,
              s.head_dim,
              s.value_dim,
              double(call.slope_map()(h / s.heads(), h % s.heads())),
              call.options.scale.value_or(1 / std::sqrt(double(s.head_dim))),
              call.options.mask};
    if (sides) {
      head.after = double(sides->after[std::size_t(h) % sides->after.size()]);
      head.any_order = sides->any_order;
      head.key_positions = sides->row(sides->keys, s.keys, h / s.heads(), h % s.heads());
      head.query_positions = sides->row(sides->queries, s.queries, h / s.heads(), h % s.heads());
    }
    const double pruned_mass = call.options.pruning_stats.empty() ? share : written.stats[std::size_t(h)].mass_bound;
    const Answer answer{output.data() + h * s.queries * s.value_dim, lse.data() + h * s.queries, pruned_mass,
                        share < 0x1p-100, alibi::kernel::kBlock<Sum<E>>};
    for (const Index row : Judge(head, call.precision(), answer).run()) beyond.emplace_back(h, row);
  }
  if (!beyond.empty() && share > 0 && !sides) judge_beyond(call, written, beyond);
}

template <class E>
void run_forward(Input& in) {
  const Shape s = shape_of(in);
  Call<E> call(in, s, s.batch);
  call.flaw(in);
  call.describe("attention_with_lse_into", "");
  const auto attend = [&] { attend_forward(call); };
  if (!run(in, call, call.right(), attend)) return;
  const Written<E> written(call);
  check(call.output_array.erase_inside(), "written outside the output");
  if (in.one_in(4)) {
    call.erase();
    call.options.executor = executor_of(1 + in.byte() % 7);
    run(in, call, true, attend);
    const Written<E> again(call);
    check(same_bits(again.output, written.output), "other bits in the output with another executor");
    check(same_bits(again.lse, written.lse), "other bits in the lse with another executor");
    for (std::size_t i = 0; i < again.stats.size(); i++)
      expect_same(again.stats[i], written.stats[i], "with another executor");
  }
  judge(call, written);
}

template <class E>
void run_sides(Input& in) {
  const Shape s = shape_of(in);
  Call<E> call(in, s, s.batch);
  const Sides<Sum<E>> sides(in, call);
  call.flaw(in);
  alibi::Mask& mask = call.options.mask;
  if (!in.one_in(8)) mask.prefix = 0, mask.sinks.reset();
  std::ostringstream text;
  text << "; after";
  for (const auto slope : sides.after) text << ' ' << slope;
  if (sides.has_positions)
    for (const auto* x : {&sides.keys, &sides.queries}) {
      text << (x == &sides.keys ? "; key positions" : "; query positions");
      for (std::size_t i = 0; i < std::min<std::size_t>(x->size(), 400); i++) text << ' ' << (*x)[i];
    }
  call.describe("attention_with_lse_into with two sides", text.str());
  const bool slopes = s.batch == 0 || sides.are_right(s, call.slopes);
  const bool right = !call.flawed && s.head_dim > 0 && s.value_dim > 0 && slopes &&
                     are_right<Sum<E>>(call.options, s.head_dim) && mask.prefix == 0 && mask.sinks.value_or(0) == 0;
  if (!run(in, call, right, [&] { attend_sides(call, sides); })) return;
  const Written<E> written(call);
  check(call.output_array.erase_inside(), "written outside the output");
  judge(call, written, &sides);
}

// Varlen and padded batches

/// One sequence of a batch.
struct Part {
  Index batch;
  KeyRange queries, keys;
};

template <class X>
alibi::View<X> part_of(alibi::View<X> x, Index b, const KeyRange& tokens) {
  if (x.data) x.data += b * x.batch_stride + tokens.begin * x.token_stride;
  x.batch = 1;
  x.tokens = tokens.end - tokens.begin;
  return x;
}

/// Checks that the output of the call, and the lse at lse_of(b, h, i), equal those of a call for this sequence alone.
template <class E, class LseOf>
void expect_separate(const Call<E>& call, Index sequence, const Part& part, const LseOf& lse_of,
                     const alibi::Mask& mask) {
  using T = Sum<E>;
  const Index heads = call.s.heads(), queries = part.queries.end - part.queries.begin, dim = call.s.value_dim;
  std::vector<E> output(std::size_t(heads * queries * dim));
  std::vector<T> lse(std::size_t(heads * queries));
  std::vector<alibi::PruningStats> stats(static_cast<std::size_t>(heads));
  alibi::Options options = call.options;
  options.queries = options.keys = {};
  options.query_offsets = options.prefixes = {};
  if (!options.pruning_stats.empty()) options.pruning_stats = stats;
  options.mask = mask;
  alibi::attention_with_lse_into(
      alibi::view(output.data(), {1, heads, queries, dim}, {heads * queries * dim, queries * dim, dim, 1}), lse,
      part_of(call.q, part.batch, part.queries), part_of(call.k, part.batch, part.keys),
      part_of(call.v, part.batch, part.keys), call.slopes_at(sequence), options);
  for (Index h = 0; h < heads; h++) {
    for (Index i = 0; i < queries; i++) {
      const Index token = part.queries.begin + i;
      const E *is = call.output_array.row(part.batch, h, token), *alone = output.data() + (h * queries + i) * dim;
      check(same_bits(is, alone, dim), "sequence ", sequence, ", head ", h, ", query ", i,
            ": other bits in the output than alone");
      const T of_batch = lse_of(part.batch, h, token), of_one = lse[std::size_t(h * queries + i)];
      check(same_bits(&of_batch, &of_one, 1), "sequence ", sequence, ", head ", h, ", query ", i, ": the lse is ",
            of_batch, ", alone ", of_one);
    }
    if (!options.pruning_stats.empty())
      expect_same(call.stats[std::size_t(sequence * heads + h)], stats[std::size_t(h)], "alone");
  }
}

/// Copies the array to a tensor: for rank 3 [tokens, heads, head_dim], for rank 4 [batch, heads, tokens, head_dim].
template <class E, int rank>
Eigen::Tensor<E, rank, Eigen::RowMajor> tensor_of(const Array<E>& x) {
  const alibi::View<E> of = x.view();
  Eigen::Tensor<E, rank, Eigen::RowMajor> y;
  if constexpr (rank == 3)
    y.resize(of.tokens, of.heads, of.head_dim);
  else
    y.resize(of.batch, of.heads, of.tokens, of.head_dim);
  x.for_each_row([&](const E* row, Index b, Index h, Index i) {
    E* const to = rank == 3 ? y.data() + (i * of.heads + h) * of.head_dim
                            : y.data() + ((b * of.heads + h) * of.tokens + i) * of.head_dim;
    std::copy_n(row, of.head_dim, to);
  });
  return y;
}

/// Checks that a tensor holds the bits of the output.
template <class E, class Tensor>
void expect_tensor(const Call<E>& call, const Tensor& is) {
  const auto was = tensor_of<E, Tensor::NumDimensions>(call.output_array);
  check(is.size() == was.size() && same_bits(is.data(), was.data(), Index(is.size())),
        "other bits in a new tensor than in the caller's memory");
}

/// Cumulative lengths of sequences. A few byte values make them invalid.
std::vector<Index> cu_seqlens_of(Input& in, Index sequences, Index tokens) {
  std::vector<Index> cu_seqlens = {0, tokens};
  for (Index i = 1; i < sequences; i++) cu_seqlens.push_back(in.integer(0, tokens));
  std::sort(cu_seqlens.begin(), cu_seqlens.end());
  switch (in.byte() % 64) {
    case 1:
      cu_seqlens[in.byte() % cu_seqlens.size()] += in.small();
      break;
    case 2:
      cu_seqlens[in.byte() % cu_seqlens.size()] = in.bits<Index>();
      break;
    case 3:
      std::swap(cu_seqlens[in.byte() % cu_seqlens.size()], cu_seqlens[in.byte() % cu_seqlens.size()]);
      break;
    case 4:
      cu_seqlens.pop_back();
      break;
    case 5:
      cu_seqlens.clear();
      break;
    case 6:
      if (tokens == 0) cu_seqlens.pop_back();
      break;
    default:;
  }
  return cu_seqlens;
}
bool are_right(const std::vector<Index>& cu_seqlens, Index tokens) {
  return !cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == tokens &&
         std::is_sorted(cu_seqlens.begin(), cu_seqlens.end());
}

template <class E>
void run_varlen(Input& in) {
  Shape s = shape_of(in);
  s.batch = 1;
  const bool one_for_both = in.flag();
  if (one_for_both) s.keys = std::min(s.queries, s.keys), s.queries = s.keys;
  const std::vector<Index> queries = cu_seqlens_of(in, 1 + in.byte() % 6, s.queries),
                           keys = one_for_both
                                      ? queries
                                      : cu_seqlens_of(in, std::max<Index>(Index(queries.size()) - 1, 1), s.keys);
  const Index sequences = std::max<Index>(Index(queries.size()) - 1, 0);
  Call<E> call(in, s, sequences);
  call.flaw(in);
  const Lists lists(in, call.options, sequences, s.queries, s.keys);
  std::ostringstream text;
  for (const auto* list : {&queries, &keys}) {
    text << (list == &queries ? ", cu_seqlens_q" : ", cu_seqlens_k");
    for (const Index start : *list) text << ' ' << start;
  }
  call.describe("attention_varlen", text.str());

  call.flawed = call.flawed && call.lse.size() == std::size_t(s.heads() * s.queries);  // lse is not passed

  alibi::CuSeqlens cu_seqlens{queries};
  if (!one_for_both) cu_seqlens.cu_seqlens_k = keys;
  // Without cu_seqlens_k, those of the queries are used, also for an empty list.
  const std::vector<Index>& of_keys = keys.empty() ? queries : keys;
  const bool right = call.right() && lists.right && are_right(queries, s.queries) && are_right(of_keys, s.keys) &&
                     of_keys.size() == queries.size();
  if (!run(in, call, right, [&] {
        alibi::attention_varlen_into(call.output, call.q, call.k, call.v, call.slope_map(), cu_seqlens, call.options);
      }))
    return;
  const Written<E> written(call);
  const auto [output, lse] =
      alibi::attention_varlen_with_lse(tensor_of<E, 3>(call.q_array), tensor_of<E, 3>(call.k_array),
                                       tensor_of<E, 3>(call.v_array), call.slope_map(), cu_seqlens, call.options);
  expect_tensor(call, output);
  for (std::size_t i = 0; i < call.stats.size(); i++) expect_same(call.stats[i], written.stats[i], "in memory");
  for (Index i = 0; i < sequences; i++) {
    const auto at = std::size_t(i);
    expect_separate(
        call, i, {0, {queries[at], queries[at + 1]}, {of_keys[at], of_keys[at + 1]}},
        [&lse = lse](Index, Index h, Index token) { return lse(h, token); }, lists.mask_of(call.options.mask, i));
  }
  check(call.output_array.erase_inside(), "written outside the output");
}

std::vector<KeyRange> ranges_of(Input& in, Index batch, Index tokens) {
  std::vector<KeyRange> ranges;
  for (Index b = 0; b < batch; b++) {
    const Index x = in.integer(0, tokens), y = in.integer(0, tokens);
    ranges.push_back({tokens - std::max(x, y), tokens - std::min(x, y)});
  }
  switch (in.byte() % 64) {
    case 1:
      if (batch > 0) ranges[0].begin += in.small();
      break;
    case 2:
      if (batch > 0) ranges[std::size_t(batch - 1)].end += in.small();
      break;
    case 3:
      if (batch > 0) ranges[0].end = in.bits<Index>();
      break;
    case 4:
      ranges.push_back({0, 0});
      break;
    default:;
  }
  return ranges;
}
bool are_right(const std::vector<KeyRange>& ranges, Index batch, Index tokens) {
  return Index(ranges.size()) == batch && std::all_of(ranges.begin(), ranges.end(), [&](const KeyRange& x) {
           return 0 <= x.begin && x.begin <= x.end && x.end <= tokens;
         });
}

/// Sets the padding, which must not be read, to NaN.
template <class E>
void erase_padding(const Array<E>& x, const std::vector<KeyRange>& ranges) {
  if (x.view().batch > 1 && x.view().batch_stride == 0) return;  // the padding of one entry is another's tokens
  x.for_each_row([&](E* row, Index b, Index, Index i) {
    const KeyRange& real = ranges[std::size_t(b)];
    if (i < real.begin || real.end <= i) std::fill_n(row, x.view().head_dim, std::numeric_limits<E>::quiet_NaN());
  });
}

template <class E>
void run_padded(Input& in) {
  const Shape s = shape_of(in);
  const bool pass_queries = in.flag();
  const std::vector<KeyRange> keys = ranges_of(in, s.batch, s.keys);
  std::vector<KeyRange> queries(std::size_t(s.batch), {0, s.queries});
  if (pass_queries) queries = ranges_of(in, s.batch, s.queries);
  Call<E> call(in, s, s.batch);
  call.flaw(in);
  const Lists lists(in, call.options, s.batch, s.queries, s.keys);
  std::ostringstream text;
  text << ", keys";
  for (const KeyRange& x : keys) text << " [" << x.begin << ", " << x.end << ')';
  text << (pass_queries ? ", queries" : ", queries not passed");
  for (const KeyRange& x : queries) text << " [" << x.begin << ", " << x.end << ')';
  call.describe("attention of a padded batch", text.str());

  call.flawed = call.flawed && call.lse.size() == std::size_t(s.batch * s.heads() * s.queries);  // lse is not passed

  call.options.keys = keys;
  if (pass_queries) call.options.queries = queries;
  const bool ranges = are_right(keys, s.batch, s.keys) && are_right(queries, s.batch, s.queries);
  const bool right = call.right() && lists.right && ranges;
  if (ranges) {
    erase_padding(call.q_array, queries);
    erase_padding(call.k_array, keys), erase_padding(call.v_array, keys);
  }
  if (!run(in, call, right,
           [&] { alibi::attention_into(call.output, call.q, call.k, call.v, call.slope_map(), call.options); }))
    return;
  const Written<E> written(call);
  const auto [output, lse] = alibi::attention_with_lse(tensor_of<E, 4>(call.q_array), tensor_of<E, 4>(call.k_array),
                                                       tensor_of<E, 4>(call.v_array), call.slope_map(), call.options);
  expect_tensor(call, output);
  for (std::size_t i = 0; i < call.stats.size(); i++) expect_same(call.stats[i], written.stats[i], "in memory");
  for (Index b = 0; b < s.batch; b++) {
    const KeyRange real = queries[std::size_t(b)];
    // With ranges of keys alone, the queries keep their positions in the arrays.
    alibi::Mask mask = lists.mask_of(call.options.mask, b);
    if (!pass_queries) {
      constexpr Index kFar = Index(1) << 61;
      const Index in_arrays = mask.query_offset.value_or(s.keys - s.queries), first = keys[std::size_t(b)].begin;
      mask.query_offset = std::clamp(in_arrays - first, -kFar, kFar);
      mask.prefix = std::max<Index>(mask.prefix - first, 0);
      mask.sinks = std::max<Index>(mask.sinks.value_or(0) - first, 0);
    }
    expect_separate(
        call, b, {b, real, keys[std::size_t(b)]},
        [&lse = lse](Index batch, Index h, Index token) { return lse(batch, h, token); }, mask);
    for (Index h = 0; h < s.heads(); h++)
      for (Index i = 0; i < s.queries; i++) {
        if (real.begin <= i && i < real.end) continue;
        check(lse(b, h, i) == -std::numeric_limits<Sum<E>>::infinity(), "the lse of padding is ", lse(b, h, i));
        for (Index d = 0; d < s.value_dim; d++)
          check(double(output(b, h, i, d)) == 0, "output[", d, "] of padding is ", double(output(b, h, i, d)));
      }
  }
  check(call.output_array.erase_inside(), "written outside the output");
}

template <class E>
void run_form(Input& in) {
  const auto form = in.byte();
  if (form % 8 == 5) return run_sides<E>(in);
  switch (form % 4) {
    case 2:
      return run_varlen<E>(in);
    case 3:
      return run_padded<E>(in);
    default:
      return run_forward<E>(in);
  }
}

}  // namespace

void run_attention(Input& in) {
  switch (in.byte() % 8) {
    case 3:
      return run_form<double>(in);
    case 4:
    case 5:
      return run_form<Eigen::bfloat16>(in);
    case 6:
      return run_form<Eigen::half>(in);
    default:
      return run_form<float>(in);
  }
}

}  // namespace fuzz
