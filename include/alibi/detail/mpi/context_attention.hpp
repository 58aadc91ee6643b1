// Attention and its gradients over a sequence that lies in pieces on several ranks. Internal.
//
// Forward:  plan; the keys that are needed start to travel; attention over the own keys; a sharper plan with their lse;
//           then, for each rank from the nearest on, attention of the blocks of rows over the keys that they need of
//           it, merged by the lse.
// Backward: the same plan from the lse of all keys. The gradients of fetched keys go back to their rank, which adds
//           those of the nearest rank first.
//
// The order of all sums follows from the plan, and the plan from the arguments, so that the bits do not depend on time.
// Memory of the forward: keys of two messages each way. The backward pass holds the gradients of all keys that were
// fetched. Options::workspace is not used.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/detail/backward_validate.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/mpi/communicator.hpp"
#include "alibi/detail/mpi/context_plan.hpp"
#include "alibi/detail/validate.hpp"
#include "alibi/merge.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"
#include "alibi/workspace.hpp"

namespace alibi::inline ALIBI_ABI::detail {

/// The pieces of the sequence on the ranks of a communicator.
struct ContextPieces {
  Communicator& mpi;
  std::span<const Index> starts;      // [ranks + 1]
  std::span<std::int64_t> agreement;  // scratch of Communicator::agree()

  Index tokens() const { return starts[std::size_t(mpi.rank()) + 1] - starts[std::size_t(mpi.rank())]; }
  Index start() const { return starts[std::size_t(mpi.rank())]; }
};

/// The keys of one message: runs of kv heads, in the order of kv heads. Of a run, the keys come before the values.
class ContextMessage {
 public:
  struct Run {
    Index kv, begin, end;  // kv head of a sequence, keys of the piece
    Index offset;          // keys before it in the message
  };
  void add(Index kv, const KeyRun& run) {
    runs_.push_back({kv, run.begin, run.end, keys_});
    keys_ += run.end - run.begin;
  }
  std::span<const Run> runs() const { return runs_; }
  Index keys() const { return keys_; }
  std::size_t bytes(Index dims, std::size_t size) const { return std::size_t(keys_ * dims) * size; }
  /// The run that holds the keys.
  const Run& find(Index kv, const KeyRun& run) const {
    const auto after = std::upper_bound(
        runs_.begin(), runs_.end(), std::pair(kv, run.begin),
        [](auto at, const Run& x) { return at.first != x.kv ? at.first < x.kv : at.second < x.begin; });
    return *std::prev(after);
  }

 private:
  std::vector<Run> runs_;
  Index keys_ = 0;
};

/// What forward and backward share.
template <class E, BiasKind kind>
class ContextCall {
 public:
  using T = Sum<E>;

 protected:
  ContextCall(const ContextPieces& pieces, const View<const E>& q, const View<const E>& k, const View<const E>& v,
              const BiasView<T>& bias, const Options& options, std::span<const T> lse)
      : mpi_(pieces.mpi),
        start_(pieces.start()),
        q_(q),
        k_(k),
        v_(v),
        bias_(bias),
        options_(options),
        plan_(pieces.mpi, pieces.starts, q, k, bias, options, lse) {}

  /// Checks what the piece of a rank, of `tokens` tokens, requires of q, k and the options.
  static void check_piece(const View<const E>& q, const View<const E>& k, const Options& options, Index tokens) {
    resolve(options.mask, q.tokens, k.tokens);
    check_context_options(options, tokens, q.tokens);
    require_equal(k.tokens, q.tokens, "k", "tokens", "q");
  }

  Index group() const { return q_.heads / k_.heads; }
  Index dims() const { return k_.head_dim + v_.head_dim; }

  /// Makes the messages and their buffers. `taken_[i]` are those of the ranks that exchange_ receives from, in its
  /// order.
  void prepare(int tag) {
    const auto ranks = std::size_t(mpi_.size()), kv = plan_.fetched.size();
    std::vector<ContextMessage> taken(ranks), given(ranks);
    std::vector<Exchange::Message> receives, sends;
    for (std::size_t at = 0; at < kv; at++)
      for (const KeyRun& run : plan_.fetched[at]) taken[std::size_t(run.rank)].add(Index(at), run);
    for (std::size_t s = 0; s < ranks; s++) {
      for (std::size_t at = 0; at < kv; at++)
        for (const KeyRun& run : plan_.given[s * kv + at]) given[s].add(Index(at), run);
      if (taken[s].keys() > 0) receives.push_back({int(s), taken[s].bytes(dims(), sizeof(E))});
      if (given[s].keys() > 0) sends.push_back({int(s), given[s].bytes(dims(), sizeof(E))});
    }
    exchange_.prepare(mpi_, tag, receives, sends, [this](Index i, std::byte* to) { pack(given_[std::size_t(i)], to); });
    for (const auto& message : exchange_.receives()) taken_.push_back(std::move(taken[std::size_t(message.peer)]));
    for (const auto& message : exchange_.sends()) given_.push_back(std::move(given[std::size_t(message.peer)]));
    mpi_.statistics.ranks_asked = Index(taken_.size());
    slots_ = std::vector<Slot>(std::size_t(options_.executor.max_concurrency()));
  }

  /// The options of a call over a part of the keys, whose first key is `key`, by rows whose first position is `row`.
  Options part_options(Index row, Index key, double tolerance, Workspace* workspace,
                       std::span<PruningStats> stats) const {
    Options options = options_;
    options.mask.query_offset = row - key;
    options.scale = plan_.scale();
    options.tolerance = tolerance;
    options.executor = {};
    options.pruning_stats = stats;
    options.workspace = workspace;
    return options;
  }

  /// The sequences and heads that one call over the own keys takes: all with several threads, which share them; else
  /// those of one kv head, so that messages proceed between the calls.
  template <class Body>
  void each_own_call(Outcome& outcome, const Body& body) {
    if (q_.heads == 0) return;
    if (options_.executor.max_concurrency() > 1) {
      outcome.attempt([&] { body(Index(0), q_.batch, Index(0), k_.heads); });
      exchange_.progress();
      return;
    }
    for (Index b = 0; b < q_.batch; b++)
      for (Index g = 0; g < k_.heads; g++) {
        outcome.attempt([&] { body(b, Index(1), g, Index(1)); });
        exchange_.progress();
      }
  }
  Options own_options(std::vector<PruningStats>& stats, Index rows, double tolerance) {
    stats.assign(std::size_t(rows), {});
    Options options = part_options(0, 0, tolerance, &slots_[0].workspace, stats);
    options.executor = options_.executor;
    return options;
  }
  void count(std::span<const PruningStats> stats) {
    for (const PruningStats& x : stats) mpi_.statistics.tiles_computed += x.tiles_computed;
  }

  /// A view of keys or values of a run in memory of X, [keys, dims] of a message.
  template <class X>
  static View<X> view_in(X* data, Index keys, Index dims) {
    return {data, 1, 1, keys, dims, 0, 0, dims};
  }

  /// Where the first key and the first value of some keys of a kv head lie in a message, in elements.
  struct Place {
    Index k, v;
  };
  Place place_of(const ContextMessage& message, Index kv, const KeyRun& run) const {
    const auto& held = message.find(kv, run);
    const Index first = held.offset * dims(), before = run.begin - held.begin;
    return {first + before * k_.head_dim, first + (held.end - held.begin) * k_.head_dim + before * v_.head_dim};
  }

  void pack(const ContextMessage& message, std::byte* to) const {
    for (const auto& run : message.runs())
      for (const View<const E>* x : {&k_, &v_})
        for (Index j = run.begin; j < run.end; j++) {
          const std::size_t size = std::size_t(x->head_dim) * sizeof(E);
          std::memcpy(to, token_of(*x, run.kv / k_.heads, run.kv % k_.heads, j), size);
          to += size;
        }
  }

  struct Slot {
    Workspace workspace;
    std::vector<E> output;
    std::vector<T> lse, grad_lse, sums;
    std::vector<PruningStats> stats;
    Index tiles = 0;
  };

  Communicator& mpi_;
  Index start_;
  View<const E> q_, k_, v_;
  BiasView<T> bias_;
  const Options& options_;
  ContextPlan<E, kind> plan_;
  Exchange exchange_;
  std::vector<ContextMessage> taken_, given_;
  std::vector<Slot> slots_;
};

template <class E, BiasKind kind>
class ContextForward : ContextCall<E, kind> {
  using Base = ContextCall<E, kind>;

 public:
  using T = Sum<E>;

  /// Checks a call of this rank, before the ranks agree.
  static void check(const ForwardCall<E>& call, const Options& options, Index tokens) {
    const SequenceList sequences = call.sequences;
    check_inputs(call.q, call.k, call.v);
    check_bias<kind>(call.bias, call.q.heads, sequences);
    check_output(call.output, call.q, call.v.head_dim);
    check_memory(call.output, call.lse, call.q.batch * call.q.heads * call.q.tokens,
                 {memory_of(call.q, "q"), memory_of(call.k, "k"), memory_of(call.v, "v"), memory_of<kind>(call.bias)});
    Base::check_piece(call.q, call.k, options, tokens);
  }

  ContextForward(const ContextPieces& pieces, const ForwardCall<E>& call, const Options& options)
      : Base(pieces, call.q, call.k, call.v, call.bias, options, {}), output_(call.output) {
    if (call.lse) lse_ = *call.lse;
  }

  void run(Outcome& outcome) {
    plan_.make(outcome);
    outcome.attempt([&] {
      prepare(kTag);
      if (lse_.empty()) {
        own_lse_.resize(std::size_t(q_.batch * q_.heads * q_.tokens));
        lse_ = own_lse_;
      }
      tolerance_ = plan_.share_of_calls();
      for (auto& slot : slots_) {
        slot.output.resize(std::size_t(kContextRows * v_.head_dim));
        slot.lse.resize(std::size_t(kContextRows));
        slot.stats.resize(1);
      }
    });
    mpi_.agree(outcome);
    exchange_.start();
    this->each_own_call(
        outcome, [&](Index b, Index sequences, Index g, Index kv_heads) { attend_own(b, sequences, g, kv_heads); });
    outcome.attempt([&] { plan_.refine(lse_); });
    exchange_.receive_all(outcome,
                          [&](Index i, const std::byte* data) { attend(i, reinterpret_cast<const E*>(data)); });
    for (const auto& slot : slots_) mpi_.statistics.tiles_computed += slot.tiles;
    mpi_.agree(outcome);
  }

 private:
  using Base::plan_, Base::prepare, Base::q_, Base::k_, Base::v_, Base::bias_, Base::slots_, Base::mpi_,
      Base::exchange_, Base::taken_, Base::start_, Base::options_;
  using typename Base::Slot;
  static constexpr int kTag = 2;

  std::span<T> lse_rows(Index b, Index h, Index first, Index rows) const {
    return lse_.subspan(std::size_t((b * q_.heads + h) * q_.tokens + first), std::size_t(rows));
  }

  void attend_own(Index b, Index sequences, Index g, Index kv_heads) {
    const Index n = q_.tokens, h = g * this->group(), heads = kv_heads * this->group();
    std::vector<PruningStats> stats;
    const Options options = this->own_options(stats, sequences * heads, tolerance_);
    ForwardCall<E> call{};
    call.q = part_of_view(q_, b, sequences, h, heads, 0, n);
    call.k = part_of_view(k_, b, sequences, g, kv_heads, 0, n);
    call.v = part_of_view(v_, b, sequences, g, kv_heads, 0, n);
    call.output = part_of_view(output_, b, sequences, h, heads, 0, n);
    call.lse = lse_rows(b, h, 0, sequences * heads * n);
    call.bias = part_of_bias<kind>(bias_, b, sequences, h, heads);
    call.sequences = {.count = sequences, .queries = n, .keys = n};
    forward<E, kind>(call, options);
    this->count(stats);
  }

  /// Attends to the keys of message i, at `data`.
  void attend(Index i, const E* data) {
    const int rank = exchange_.receives()[std::size_t(i)].peer;
    const Index items = q_.batch * q_.heads * plan_.blocks();
    options_.executor.for_each(items, [&](Index at, int slot) {
      const Index block = at % plan_.blocks(), head = at / plan_.blocks();
      for (const KeyRun& run : plan_.needs_of(head / q_.heads, head % q_.heads, block))
        if (run.rank == rank)
          attend_run(slots_[std::size_t(slot)], taken_[std::size_t(i)], data, head / q_.heads, head % q_.heads, block,
                     run);
    });
  }

  void attend_run(Slot& slot, const ContextMessage& message, const E* data, Index b, Index h, Index block,
                  const KeyRun& run) {
    const Index first = block * kContextRows, rows = std::min(kContextRows, q_.tokens - first),
                keys = run.end - run.begin, value_dim = v_.head_dim;
    const auto at = this->place_of(message, b * k_.heads + h / this->group(), run);
    ForwardCall<E> call{};
    call.q = part_of_view(q_, b, 1, h, 1, first, rows);
    call.k = this->view_in(data + at.k, keys, k_.head_dim);
    call.v = this->view_in(data + at.v, keys, value_dim);
    call.output = this->view_in(slot.output.data(), rows, value_dim);
    const std::span<T> part_lse = std::span(slot.lse).first(std::size_t(rows));
    call.lse = part_lse;
    call.bias = part_of_bias<kind>(bias_, b, 1, h, 1);
    call.sequences = {.count = 1, .queries = rows, .keys = keys};
    forward<E, kind>(call, this->part_options(start_ + first, plan_.pieces().start(run.rank) + run.begin, tolerance_,
                                              &slot.workspace, slot.stats));
    slot.tiles += slot.stats[0].tiles_computed;
    View<E> into = part_of_view(output_, b, 1, h, 1, first, rows);
    std::span<T> into_lse = lse_rows(b, h, first, rows);
    merge_into(into, into_lse, {{into, into_lse}, {call.output, part_lse}});
  }

  View<E> output_;
  std::span<T> lse_;
  std::vector<T> own_lse_;
  double tolerance_ = 0;
};

template <class E, BiasKind kind>
class ContextBackward : ContextCall<E, kind> {
  using Base = ContextCall<E, kind>;

 public:
  using T = Sum<E>;

  static void check(const BackwardCall<E>& call, const Options& options, Index tokens) {
    check_backward<kind>(call, call.sequences);
    Base::check_piece(call.q, call.k, options, tokens);
  }

  ContextBackward(const ContextPieces& pieces, const BackwardCall<E>& call, const Options& options)
      : Base(pieces, call.q, call.k, call.v, call.bias, options, call.lse), call_(call) {}

  void run(Outcome& outcome) {
    std::vector<double> all_bias;
    plan_.make(outcome);
    outcome.attempt([&] {
      prepare(kTag);
      prepare_gradients();
      if (call_.grad_bias.size() == 0) return;
      const Index entries = call_.grad_bias.size();
      require(entries <= Index(std::numeric_limits<int>::max() / sizeof(double)), "the gradient of the bias has ",
              entries, " entries; expected fewer than 2^28 over several ranks");
      all_bias.resize(std::size_t(entries) * std::size_t(mpi_.size()));
    });
    mpi_.agree(outcome);
    exchange_.start();
    this->each_own_call(
        outcome, [&](Index b, Index sequences, Index g, Index kv_heads) { attend_own(b, sequences, g, kv_heads); });
    exchange_.receive_all(outcome,
                          [&](Index i, const std::byte* data) { attend(i, reinterpret_cast<const E*>(data)); });
    for (const auto& slot : slots_) mpi_.statistics.tiles_computed += slot.tiles;

    gradients_.start();
    gradients_.receive_all(outcome,
                           [&](Index i, const std::byte* data) { add_gradients(i, reinterpret_cast<const T*>(data)); });
    if (call_.grad_bias.size() > 0) {
      mpi_.template all_gather<double>(own_bias(), all_bias);
      outcome.attempt([&] { write_bias(all_bias); });
    }
    mpi_.agree(outcome);
  }

 private:
  using Base::plan_, Base::prepare, Base::q_, Base::k_, Base::v_, Base::slots_, Base::mpi_, Base::exchange_,
      Base::taken_, Base::given_, Base::start_, Base::options_;
  using typename Base::Slot;
  static constexpr int kTag = 3, kGradientTag = 4;

  /// The entries of the gradient of the bias of one head.
  Index entries() const { return kind == BiasKind::table ? Base::bias_.table.entries : 1; }

  void prepare_gradients() {
    std::size_t most = 0;  // the most calls that a row takes part in
    needs_.resize(std::size_t(q_.batch * k_.heads * plan_.blocks()));
    for (Index b = 0; b < q_.batch; b++)
      for (Index g = 0; g < k_.heads; g++)
        for (Index block = 0; block < plan_.blocks() && mpi_.size() > 1; block++) {
          auto& runs = needs_[std::size_t((b * k_.heads + g) * plan_.blocks() + block)];
          for (Index h = g * this->group(); h < (g + 1) * this->group(); h++) {
            const auto& of_head = plan_.needs_of(b, h, block);
            runs.insert(runs.end(), of_head.begin(), of_head.end());
          }
          join_runs(runs);
          most = std::max(most, runs.size());
        }
    tolerance_ = plan_.share_of_calls() / double(1 + most);
    // A shared gradient has entries without a sequence too.
    bias_.assign(std::size_t(std::max(q_.batch * q_.heads * entries(), call_.grad_bias.size())), 0);
    std::vector<Exchange::Message> receives, sends;
    for (std::size_t i = 0; i < taken_.size(); i++) {
      sends.push_back({exchange_.receives()[i].peer, taken_[i].bytes(this->dims(), sizeof(T))});
      of_keys_.emplace_back(std::size_t(taken_[i].keys() * this->dims()), T(0));
    }
    for (std::size_t i = 0; i < given_.size(); i++)
      receives.push_back({exchange_.sends()[i].peer, given_[i].bytes(this->dims(), sizeof(T))});
    // The order of both lists is that of the first exchange, but for ranks at the same distance.
    gradients_.prepare(mpi_, kGradientTag, receives, sends, [this](Index i, std::byte* to) {
      const std::size_t at = index_of(exchange_.receives(), gradients_.sends()[std::size_t(i)].peer);
      std::memcpy(to, of_keys_[at].data(), of_keys_[at].size() * sizeof(T));
    });
    for (auto& slot : slots_) slot.stats.resize(std::size_t(this->group()));
  }
  static std::size_t index_of(std::span<const Exchange::Message> messages, int peer) {
    std::size_t i = 0;
    while (messages[i].peer != peer) i++;
    return i;
  }

  /// Runs a call for heads of kv heads [g, g + kv_heads), and adds its gradient of the bias. `of_bias` is scratch.
  void run_call(BackwardCall<E>& call, Index b, Index sequences, Index g, Index kv_heads, std::vector<T>& of_bias,
                const Options& options) {
    const Index h = g * this->group(), heads = kv_heads * this->group();
    call.bias = part_of_bias<kind>(Base::bias_, b, sequences, h, heads);
    call.sequences = {.count = sequences, .queries = call.q.tokens, .keys = call.k.tokens};
    if (call_.grad_bias.size() == 0) return backward<E, kind>(call, options);
    const bool per_sequence = kind == BiasKind::slopes && call.bias.slopes.batch_stride != 0;
    const Index rows = per_sequence ? sequences : 1;  // a shared bias has one gradient for all sequences
    of_bias.assign(std::size_t(rows * heads * entries()), T(0));
    call.grad_bias = {of_bias.data(), kind == BiasKind::table ? heads : rows,
                      kind == BiasKind::table ? entries() : heads};
    backward<E, kind>(call, options);
    for (Index s = 0; s < rows; s++)
      for (Index x = 0; x < heads * entries(); x++)
        bias_[std::size_t(((b + s) * q_.heads + h) * entries() + x)] +=
            double(of_bias[std::size_t(s * heads * entries() + x)]);
  }

  EitherView<E> grad_output_part(Index b, Index sequences, Index h, Index heads, Index first, Index rows) const {
    EitherView<E> part = call_.grad_output;
    if (part.is_sum)
      part.of_sum = part_of_view(part.of_sum, b, sequences, h, heads, first, rows);
    else
      part.of_scalar = part_of_view(part.of_scalar, b, sequences, h, heads, first, rows);
    return part;
  }

  void attend_own(Index b, Index sequences, Index g, Index kv_heads) {
    const Index n = q_.tokens, h = g * this->group(), heads = kv_heads * this->group();
    std::vector<PruningStats> stats;
    const Options options = this->own_options(stats, sequences * heads, tolerance_);
    BackwardCall<E> call{};
    call.q = part_of_view(q_, b, sequences, h, heads, 0, n);
    call.k = part_of_view(k_, b, sequences, g, kv_heads, 0, n);
    call.v = part_of_view(v_, b, sequences, g, kv_heads, 0, n);
    call.output = part_of_view(call_.output, b, sequences, h, heads, 0, n);
    call.grad_output = grad_output_part(b, sequences, h, heads, 0, n);
    const auto at = std::size_t((b * q_.heads + h) * n), rows = std::size_t(sequences * heads * n);
    call.lse = call_.lse.subspan(at, rows);
    if (call_.grad_lse) call.grad_lse = call_.grad_lse->subspan(at, rows);
    call.grad_q = part_of_view(call_.grad_q, b, sequences, h, heads, 0, n);
    call.grad_k = part_of_view(call_.grad_k, b, sequences, g, kv_heads, 0, n);
    call.grad_v = part_of_view(call_.grad_v, b, sequences, g, kv_heads, 0, n);
    std::vector<T> of_bias;
    run_call(call, b, sequences, g, kv_heads, of_bias, options);
    this->count(stats);
  }

  /// Attends to the keys of message i, at `data`: one task for each kv head, because its rows share the gradient of
  /// keys.
  void attend(Index i, const E* data) {
    const int rank = exchange_.receives()[std::size_t(i)].peer;
    options_.executor.for_each(q_.batch * k_.heads, [&](Index kv, int slot) {
      for (Index block = 0; block < plan_.blocks(); block++)
        for (const KeyRun& run : needs_[std::size_t(kv * plan_.blocks() + block)])
          if (run.rank == rank)
            attend_run(slots_[std::size_t(slot)], taken_[std::size_t(i)], data, of_keys_[std::size_t(i)].data(), kv,
                       block, run);
    });
  }

  void attend_run(Slot& slot, const ContextMessage& message, const E* data, T* of_keys, Index kv, Index block,
                  const KeyRun& run) {
    const Index b = kv / k_.heads, g = kv % k_.heads, h = g * this->group(), heads = this->group();
    const Index first = block * kContextRows, rows = std::min(kContextRows, q_.tokens - first),
                keys = run.end - run.begin, dim = k_.head_dim, value_dim = v_.head_dim;
    const auto at = this->place_of(message, kv, run);
    BackwardCall<E> call{};
    call.q = part_of_view(q_, b, 1, h, heads, first, rows);
    call.k = this->view_in(data + at.k, keys, dim);
    call.v = this->view_in(data + at.v, keys, value_dim);
    call.output = part_of_view(call_.output, b, 1, h, heads, first, rows);
    call.grad_output = grad_output_part(b, 1, h, heads, first, rows);
    call.lse = copy_rows(slot.lse, call_.lse, b, h, heads, first, rows);
    if (call_.grad_lse) call.grad_lse = copy_rows(slot.grad_lse, *call_.grad_lse, b, h, heads, first, rows);
    slot.sums.resize(std::size_t(heads * rows * dim + keys * (dim + value_dim)));
    T *const to_q = slot.sums.data(), *const to_k = to_q + heads * rows * dim, *const to_v = to_k + keys * dim;
    call.grad_q = {to_q, 1, heads, rows, dim, 0, rows * dim, dim};
    call.grad_k = this->view_in(to_k, keys, dim);
    call.grad_v = this->view_in(to_v, keys, value_dim);
    std::vector<T> of_bias;
    run_call(call, b, 1, g, 1, of_bias,
             this->part_options(start_ + first, plan_.pieces().start(run.rank) + run.begin, tolerance_, &slot.workspace,
                                slot.stats));
    for (const PruningStats& x : slot.stats) slot.tiles += x.tiles_computed;
    for (Index i = 0; i < heads; i++)
      add_rows(part_of_view(call_.grad_q, b, 1, h + i, 1, first, rows), to_q + i * rows * dim);
    for (Index x = 0; x < keys * dim; x++) of_keys[at.k + x] += to_k[x];
    for (Index x = 0; x < keys * value_dim; x++) of_keys[at.v + x] += to_v[x];
  }
  /// Entries of [batch, heads, tokens] for some rows of some heads, side by side in `to`.
  std::span<const T> copy_rows(std::vector<T>& to, std::span<const T> from, Index b, Index h, Index heads, Index first,
                               Index rows) const {
    to.resize(std::size_t(heads * rows));
    for (Index i = 0; i < heads; i++)
      std::copy_n(from.data() + (b * q_.heads + h + i) * q_.tokens + first, rows, to.data() + i * rows);
    return to;
  }
  /// Adds rows, side by side at `from`, to those of a head.
  static void add_rows(const View<T>& to, const T* from) {
    for (Index i = 0; i < to.tokens; i++)
      for (Index d = 0; d < to.head_dim; d++) to.data[i * to.token_stride + d] += *from++;
  }

  /// Adds the gradients of own keys that message i of gradients_ brings.
  void add_gradients(Index i, const T* data) {
    const std::size_t at = index_of(exchange_.sends(), gradients_.receives()[std::size_t(i)].peer);
    for (const auto& run : given_[at].runs()) {
      const Index b = run.kv / k_.heads, g = run.kv % k_.heads, keys = run.end - run.begin;
      add_rows(part_of_view(call_.grad_k, b, 1, g, 1, run.begin, keys), data);
      data += keys * k_.head_dim;
      add_rows(part_of_view(call_.grad_v, b, 1, g, 1, run.begin, keys), data);
      data += keys * v_.head_dim;
    }
  }

  /// The gradient of the bias by this rank, summed over the sequences if they share it. Tasks of different sequences
  /// run at the same time, so that each has entries of its own until then.
  std::span<const double> own_bias() {
    const auto size = std::size_t(call_.grad_bias.size());
    for (std::size_t x = size; x < bias_.size(); x++) bias_[x % size] += bias_[x];
    return std::span(bias_).first(size);
  }
  /// Writes the gradient of the bias, summed over the ranks.
  void write_bias(const std::vector<double>& all) {
    const auto size = std::size_t(call_.grad_bias.size());
    for (std::size_t x = 0; x < size; x++) {
      double sum = 0;
      for (std::size_t r = 0; r < std::size_t(mpi_.size()); r++) sum += all[r * size + x];
      call_.grad_bias.data[x] = T(sum);
    }
  }

  BackwardCall<E> call_;
  double tolerance_ = 0;
  std::vector<std::vector<KeyRun>> needs_;  // [batch][kv_heads][blocks], of all heads of a kv head
  std::vector<std::vector<T>> of_keys_;     // the gradients of fetched keys, in the order of messages
  std::vector<double> bias_;  // the gradient of the bias by this rank, [batch][heads][entries]; then own_bias()
  Exchange gradients_;
};

}  // namespace alibi::inline ALIBI_ABI::detail
