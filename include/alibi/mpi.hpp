// Attention over a sequence that lies on several ranks of MPI (context parallelism), with its gradients, and over a
// cache whose keys do. Needs <mpi.h>; no other header of this folder includes it. CMake: target alibi::mpi.
//
// Rank r holds a contiguous piece of the sequence, of any length, also none; the pieces follow one another in the order
// of ranks. Every rank calls with its own piece of q, k and v, and gets its own piece of the result:
//
//   alibi::ContextParallel parallel(MPI_COMM_WORLD, {.tokens = local_tokens});
//   auto [output, lse] = parallel.attention_with_lse(q, k, v, slopes, options);
//   auto grad = parallel.attention_backward(grad_output, q, k, v, slopes, {output, lse}, options);
//
// The result is that of attention() over the whole sequence, up to rounding. A rank fetches only the keys of others
// that the certificate of pruning.hpp cannot rule out, in tiles of 64 keys (detail/context_plan.hpp has the bound and
// how the tolerance is divided). With ALiBi's slopes the bytes that a rank receives therefore do not grow with the
// number of ranks. For heads without bias, tables and a tolerance of 0 every visible key travels once, as in ring
// attention.
//
// - The same arguments on the same number of ranks give the same bits.
// - Each rank may use several threads (Options::executor). Only the calling thread calls MPI: MPI_THREAD_FUNNELED.
// - Calls are collective: all ranks make them, with the same shapes (but for tokens), slopes and options.
// - Outputs of bfloat16 and half are rounded once more for each rank that sent keys.
//
// The bias is slopes, a relative_bias() or no_bias. Of Options, mask.query_offset, mask.prefix, mask.sinks, queries,
// keys, query_offsets, prefixes and pruning_stats must be left out. `workspace` is not used but over a cache.
//
// Errors: if a rank throws, all do, and with the same message, which names the rank. (The views of results and of
// gradients that the caller writes in braces are made before the call; an error there is the rank's own.)
//   std::invalid_argument   a wrong argument, or one that differs between ranks
//   std::runtime_error      a rank that is out of memory, or anything else; outputs are then undefined
// Errors of MPI itself are handled as the communicator says; by default the program ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/cached_attention.hpp"
#include "alibi/detail/adapt.hpp"
#include "alibi/detail/call.hpp"
#include "alibi/detail/mpi/communicator.hpp"
#include "alibi/detail/mpi/context_attention.hpp"
#include "alibi/detail/mpi/context_cache.hpp"
#include "alibi/detail/mpi/context_plan.hpp"
#include "alibi/error.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/options.hpp"
#include "alibi/view.hpp"

namespace alibi::inline ALIBI_ABI {

/// What a rank holds.
struct ContextConfig {
  Index tokens = 0;  ///< the tokens of the sequence on this rank, 0 or more; not needed for attention over a cache
};

/// Attention over a sequence on several ranks. The communicator is duplicated; MPI must run until the object has been
/// destroyed.
class ContextParallel {
 public:
  /// Collective. Throws std::invalid_argument on all ranks if the tokens of one are below 0.
  explicit ContextParallel(MPI_Comm comm, const ContextConfig& config = {}) : mpi_(comm) {
    detail::Outcome outcome;
    std::vector<std::int64_t> tokens;
    outcome.attempt([&] {
      tokens.resize(std::size_t(mpi_.size()));
      starts_.resize(std::size_t(mpi_.size()) + 1);
      agreement_.resize(std::size_t(mpi_.size()) * (detail::Communicator::kFields + 1));
      detail::require(config.tokens >= 0, "config.tokens is ", config.tokens, "; expected 0 or more");
    });
    mpi_.agree(outcome);
    const std::int64_t own = config.tokens;
    mpi_.all_gather<std::int64_t>({&own, 1}, tokens);
    for (std::size_t r = 0; r < tokens.size(); r++) starts_[r + 1] = starts_[r] + tokens[r];
  }
  ContextParallel(const ContextParallel&) = delete;
  ContextParallel& operator=(const ContextParallel&) = delete;

  int rank() const { return mpi_.rank(); }  ///< this rank
  int size() const { return mpi_.size(); }  ///< the number of ranks
  /// The position of the first token of a rank in the sequence; start(size()) is the length of the sequence.
  Index start(int rank) const {
    detail::require(0 <= rank && rank <= size(), "rank is ", rank, "; expected 0 to ", size());
    return starts_[std::size_t(rank)];
  }
  /// What the last call has done on this rank.
  const ContextStatistics& statistics() const { return mpi_.statistics; }

  /// This rank's piece of attention(q, k, v, slopes) over the whole sequence. q is [batch, heads, tokens, head_dim], k
  /// [batch, kv_heads, tokens, head_dim], v [batch, kv_heads, tokens, value_dim] with the tokens of this rank; slopes
  /// are as for attention(), the same on all ranks. Collective. The head of this file lists the errors.
  template <class Q, class K, class V, class Bias>
  auto attention(const Q& q, const K& k, const V& v, const Bias& slopes, const Options& options = {}) {
    std::optional<decltype(detail::new_output(q, v))> output;
    forward<Q>(
        [&](auto& call) {
          output.emplace(detail::new_output(q, v));
          fill(call, *output, q, k, v, slopes);
        },
        slopes, options);
    return std::move(*output);
  }
  /// The same with the log-sum-exp of each row, [batch, heads, tokens], natural logarithm.
  template <class Q, class K, class V, class Bias>
  auto attention_with_lse(const Q& q, const K& k, const V& v, const Bias& slopes, const Options& options = {}) {
    using Output = decltype(detail::new_output(q, v));
    using Lse = decltype(detail::new_lse(q));
    std::optional<Output> output;
    std::optional<Lse> lse;
    forward<Q>(
        [&](auto& call) {
          output.emplace(detail::new_output(q, v));
          lse.emplace(detail::new_lse(q));
          fill(call, *output, q, k, v, slopes);
          call.lse = lse_view<detail::SumOf<Q>>(*lse);
        },
        slopes, options);
    return ForwardResult<Output, Lse>{std::move(*output), std::move(*lse)};
  }
  /// attention() into memory of the caller, which may not overlap an input.
  template <class Output, class Q, class K, class V, class Bias>
  void attention_into(Output&& output, const Q& q, const K& k, const V& v, const Bias& slopes,
                      const Options& options = {}) {
    forward<Q>([&](auto& call) { fill(call, output, q, k, v, slopes); }, slopes, options);
  }
  /// attention_with_lse() into memory of the caller.
  template <class Output, class Lse, class Q, class K, class V, class Bias>
  void attention_with_lse_into(Output&& output, Lse&& lse, const Q& q, const K& k, const V& v, const Bias& slopes,
                               const Options& options = {}) {
    forward<Q>(
        [&](auto& call) {
          fill(call, output, q, k, v, slopes);
          call.lse = lse_view<detail::SumOf<Q>>(lse);
        },
        slopes, options);
  }

  /// This rank's piece of the gradients of attention() over the whole sequence: of q, k and v as they are given, and
  /// the whole gradient of the slopes, or of the table, on every rank. `forward` are the results of
  /// attention_with_lse() on this rank. Shapes are those of attention_backward(). Collective. The head of this file
  /// lists the errors.
  template <class GradOutput, class Q, class K, class V, class Bias>
  auto attention_backward(const GradOutput& grad_output, const Q& q, const K& k, const V& v, const Bias& slopes,
                          const ForwardResultView<typename Adapter<Q>::Scalar>& forward_result,
                          const Options& options = {}) {
    using T = detail::SumOf<Q>;
    // New arrays may fail to be allocated on one rank: then there is nothing to write to.
    using Result = decltype(detail::new_gradients<T, Adapter>(q, k, v, slopes, detail::NewLike<T>(),
                                                              [](const GradientViews<T>&) {}));
    std::optional<Result> result;
    detail::Outcome outcome;
    outcome.attempt([&] {
      result.emplace(
          detail::new_gradients<T, Adapter>(q, k, v, slopes, detail::NewLike<T>(), [](const GradientViews<T>&) {}));
    });
    std::optional<GradientViews<T>> views;
    outcome.attempt([&] {
      if constexpr (requires { result->slopes; })
        views.emplace(result->q, result->k, result->v, result->slopes);
      else if constexpr (requires { result->table; })
        views.emplace(result->q, result->k, result->v, result->table);
      else
        views.emplace(result->q, result->k, result->v);
    });
    backward(outcome, views, grad_output, q, k, v, slopes, forward_result, options);
    return std::move(*result);
  }
  /// attention_backward() into memory of the caller, as alibi::attention_backward_into().
  template <class GradOutput, class Q, class K, class V, class Bias>
  void attention_backward_into(const GradientViews<detail::SumOf<Q>>& gradients, const GradOutput& grad_output,
                               const Q& q, const K& k, const V& v, const Bias& slopes,
                               const ForwardResultView<typename Adapter<Q>::Scalar>& forward_result,
                               const Options& options = {}) {
    detail::Outcome outcome;
    const std::optional<GradientViews<detail::SumOf<Q>>> views = gradients;
    backward(outcome, views, grad_output, q, k, v, slopes, forward_result, options);
  }

  /// Attention over a cache that lies on several ranks: rank r holds a contiguous part of the keys, of one length for
  /// all sequences of the batch, and the parts follow one another in the order of ranks. New tokens are appended to the
  /// cache of the last rank. All ranks call with the same q, [batch, heads, queries, head_dim], whose last query has
  /// the position of the last key, and get the whole result. A rank whose keys cannot matter does not attend.
  /// Collective; the `tokens` of the config do not matter.
  template <class Q, class S, class Slopes>
  auto attention(const Q& q, const KvCache<S>& cache, const Slopes& slopes, const Options& options = {}) {
    std::optional<decltype(detail::new_cached_output(q, cache))> output;
    cached<Q, S, Slopes>(
        [&](auto& call) {
          output.emplace(detail::new_cached_output(q, cache));
          fill_cached(call, *output, std::nullopt, q, cache, slopes);
        },
        options);
    return std::move(*output);
  }
  /// The same with the log-sum-exp, [batch, heads, queries], natural logarithm.
  template <class Q, class S, class Slopes>
  auto attention_with_lse(const Q& q, const KvCache<S>& cache, const Slopes& slopes, const Options& options = {}) {
    using Output = decltype(detail::new_cached_output(q, cache));
    using Lse = decltype(detail::new_lse(q));
    std::optional<Output> output;
    std::optional<Lse> lse;
    cached<Q, S, Slopes>(
        [&](auto& call) {
          output.emplace(detail::new_cached_output(q, cache));
          lse.emplace(detail::new_lse(q));
          fill_cached(call, *output, lse_view<detail::SumOf<Q>>(*lse), q, cache, slopes);
        },
        options);
    return ForwardResult<Output, Lse>{std::move(*output), std::move(*lse)};
  }

 private:
  detail::ContextPieces pieces() { return {mpi_, starts_, agreement_}; }
  Index tokens() const { return start(rank() + 1) - start(rank()); }

  template <class Call, class Output, class Q, class K, class V, class Bias>
  static void fill(Call& call, Output& output, const Q& q, const K& k, const V& v, const Bias& slopes) {
    using E = typename Adapter<Q>::Scalar;
    call.output = Adapter<std::remove_const_t<Output>>::of(output, "output");
    detail::check_scalars<E, typename Adapter<K>::Scalar, typename Adapter<V>::Scalar, decltype(call.output)>();
    fill_inputs(call, q, k, v, slopes);
  }
  template <class Call, class Q, class K, class V, class Bias>
  static void fill_inputs(Call& call, const Q& q, const K& k, const V& v, const Bias& slopes) {
    call.q = detail::view_of(q, "q");
    call.k = detail::view_of(k, "k");
    call.v = detail::view_of(v, "v");
    call.bias = detail::bias_view<detail::SumOf<Q>>(slopes, call.q.heads);
    call.sequences = {.count = call.q.batch, .queries = call.q.tokens, .keys = call.k.tokens};
  }
  template <class Call, class Output, class Lse, class Q, class S, class Slopes>
  static void fill_cached(Call& call, Output& output, Lse lse, const Q& q, const KvCache<S>& cache,
                          const Slopes& slopes) {
    using E = typename Adapter<Q>::Scalar;
    static_assert(std::is_same_v<E, S> || (std::is_same_v<E, float> && !std::is_same_v<S, double>),
                  "alibi: q must hold the scalar of the cache, or float for a cache of bfloat16 or half.");
    const View<const E> queries = detail::view_of(q, "q");
    call.emplace(detail::CachedCall<E, S>{queries, Adapter<Output>::of(output, "output"), lse, cache,
                                          detail::bias_view<detail::Sum<E>>(slopes, queries.heads)});
  }

  /// The kind of a bias, which must be one that the plan of the exchange knows.
  template <class Bias>
  static constexpr detail::BiasKind bias_kind() {
    static_assert(detail::kBiasKind<Bias> != detail::BiasKind::positions,
                  "alibi: over several ranks the bias is slopes, a relative_bias() or no_bias, not two_sided() or "
                  "positions().");
    return detail::kBiasKind<Bias>;
  }

  template <class Q, class Fill, class Bias>
  void forward(const Fill& fill_call, const Bias&, const Options& options) {
    using E = typename Adapter<Q>::Scalar;
    constexpr detail::BiasKind kKind = bias_kind<Bias>();
    mpi_.statistics = {};
    detail::Outcome outcome;
    detail::ForwardCall<E> call{};
    std::array<detail::SharedField, detail::Communicator::kFields> fields{};
    std::size_t count = 0;
    outcome.attempt([&] {
      fill_call(call);
      detail::ContextForward<E, kKind>::check(call, options, tokens());
      count = detail::shared_fields<E, kKind>(detail::ContextOperation::attention, call.q, call.k.heads,
                                              call.v.head_dim, call.bias, options, fields);
    });
    mpi_.agree(outcome, std::span(fields).first(count), agreement_);
    detail::ContextForward<E, kKind>(pieces(), call, options).run(outcome);
  }

  template <class T, class Gradient, class Q, class K, class V, class Bias>
  void backward(detail::Outcome& outcome, const std::optional<GradientViews<T>>& gradients, const Gradient& gradient,
                const Q& q, const K& k, const V& v, const Bias& slopes,
                const ForwardResultView<typename Adapter<Q>::Scalar>& forward_result, const Options& options) {
    using E = typename Adapter<Q>::Scalar;
    const auto& grad_output = [&gradient]() -> const auto& {
      if constexpr (detail::kIsForwardResult<Gradient>)
        return gradient.output;
      else
        return gradient;
    }();
    using G = typename Adapter<std::remove_cvref_t<decltype(grad_output)>>::Scalar;
    static_assert(std::is_same_v<G, E> || std::is_same_v<G, T>,
                  "alibi: grad_output must hold the scalar of q, or float where that is bfloat16 or half.");
    constexpr detail::BiasKind kKind = bias_kind<Bias>();
    mpi_.statistics = {};
    detail::BackwardCall<E> call{};
    std::array<detail::SharedField, detail::Communicator::kFields> fields{};
    std::size_t count = 0;
    outcome.attempt([&] {
      fill_inputs(call, q, k, v, slopes);
      if constexpr (std::is_same_v<G, E>)
        call.grad_output.of_scalar = detail::view_of(grad_output, "grad_output");
      else
        call.grad_output.of_sum = detail::view_of(grad_output, "grad_output"), call.grad_output.is_sum = true;
      if constexpr (detail::kIsForwardResult<Gradient>) call.grad_lse = lse_view<const T>(gradient.lse, "grad_lse");
      call.output = forward_result.output;
      call.lse = forward_result.lse;
      call.grad_q = gradients->q, call.grad_k = gradients->k, call.grad_v = gradients->v;
      call.grad_bias = gradients->bias;
      detail::ContextBackward<E, kKind>::check(call, options, tokens());
      count = detail::shared_fields<E, kKind>(detail::ContextOperation::backward, call.q, call.k.heads, call.v.head_dim,
                                              call.bias, options, fields);
      fields[count++] = detail::SharedField::of("the gradient of the bias has entries", call.grad_bias.size());
    });
    mpi_.agree(outcome, std::span(fields).first(count), agreement_);
    detail::ContextBackward<E, kKind>(pieces(), call, options).run(outcome);
  }

  template <class Q, class S, class Bias, class Fill>
  void cached(const Fill& fill_call, const Options& options) {
    using E = typename Adapter<Q>::Scalar;
    constexpr detail::BiasKind kKind = bias_kind<Bias>();
    using Call = detail::ContextCache<E, S, kKind>;
    mpi_.statistics = {};
    detail::Outcome outcome;
    std::optional<detail::CachedCall<E, S>> call;
    std::array<detail::SharedField, detail::Communicator::kFields> fields{};
    std::size_t count = 0;
    outcome.attempt([&] {
      fill_call(call);
      Call::check(*call, options);
      count = detail::shared_fields<E, kKind>(detail::ContextOperation::cache, call->q, call->cache.config().kv_heads,
                                              call->output.head_dim, call->bias, options, fields);
      fields[count++] = detail::SharedField::of("q has tokens", call->q.tokens);
      fields[count++] = detail::SharedField::of("the cache has window", call->cache.config().window.value_or(0));
      fields[count++] = detail::SharedField::content("the values of q are", Call::hash_of(call->q));
    });
    mpi_.agree(outcome, std::span(fields).first(count), agreement_);
    Call(mpi_, *call, options).run(outcome);
  }

  detail::Communicator mpi_;
  std::vector<Index> starts_;            // [ranks + 1]
  std::vector<std::int64_t> agreement_;  // scratch of Communicator::agree()
};

}  // namespace alibi::inline ALIBI_ABI
