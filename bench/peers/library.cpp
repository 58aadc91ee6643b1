// Plain C functions over raw pointers, so that attention.py can call the library from Python (library.py).
//
//   q, output, gradients of q          [heads, queries, head_dim], one batch, float, contiguous
//   k, v, their gradients              [heads, keys, head_dim]
//   slopes                             [heads]
//   lse                                [heads, queries]
//   tolerance                          Options::tolerance; below 0: the default
//
// Attention is causal, its scale 1 / sqrt(head_dim), the last query on the last key. Functions return null, or a
// message that is valid until the next call of the same thread.
#include <alibi/backward.hpp>
#include <alibi/cached_attention.hpp>
#include <alibi/layouts.hpp>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace {

using alibi::Index;

/// The threads and the scratch memory of all calls.
struct Session {
  explicit Session(int threads)
      : pool(threads > 1 ? std::make_unique<Eigen::ThreadPool>(threads, /*allow_spinning=*/false) : nullptr),
        executor(pool ? alibi::Executor(*pool) : alibi::Executor()) {}

  alibi::Options options(double tolerance) {
    alibi::Options result{.executor = executor, .workspace = &workspace};
    if (tolerance >= 0) result.tolerance = tolerance;
    return result;
  }

  std::unique_ptr<Eigen::ThreadPool> pool;
  alibi::Executor executor;
  alibi::Workspace workspace;
};

struct Sizes {
  Index heads, queries, keys, head_dim;
};

template <class T>
alibi::View<T> array(T* data, Index heads, Index tokens, Index head_dim) {
  return alibi::view(data, {1, heads, tokens, head_dim}, {heads * tokens * head_dim, tokens * head_dim, head_dim, 1});
}
template <class T>
alibi::View<T> queries(T* data, const Sizes& s) {
  return array(data, s.heads, s.queries, s.head_dim);
}
template <class T>
alibi::View<T> keys(T* data, const Sizes& s) {
  return array(data, s.heads, s.keys, s.head_dim);
}
std::span<const float> of_heads(const float* slopes, Index heads) { return {slopes, std::size_t(heads)}; }

/// Runs body(). No exception leaves a C function.
template <class Body>
const char* guarded(const Body& body) {
  static thread_local std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

Session* peers_session_new(int threads) { return new (std::nothrow) Session(threads); }
void peers_session_delete(Session* session) { delete session; }

const char* peers_forward(Session* session, const Sizes* s, const float* q, const float* k, const float* v,
                          const float* slopes, double tolerance, float* output) {
  return guarded([&] {
    alibi::attention_into(queries(output, *s), queries(q, *s), keys(k, *s), keys(v, *s), of_heads(slopes, s->heads),
                          session->options(tolerance));
  });
}

const char* peers_forward_backward(Session* session, const Sizes* s, const float* q, const float* k, const float* v,
                                   const float* slopes, const float* grad_output, double tolerance, float* output,
                                   float* lse, float* grad_q, float* grad_k, float* grad_v) {
  return guarded([&] {
    const auto options = session->options(tolerance);
    const std::span rows(lse, std::size_t(s->heads * s->queries));
    alibi::attention_with_lse_into(queries(output, *s), rows, queries(q, *s), keys(k, *s), keys(v, *s),
                                   of_heads(slopes, s->heads), options);
    alibi::attention_backward_into({queries(grad_q, *s), keys(grad_k, *s), keys(grad_v, *s)}, queries(grad_output, *s),
                                   queries(q, *s), keys(k, *s), keys(v, *s), of_heads(slopes, s->heads),
                                   {queries(output, *s), rows}, options);
  });
}

/// A cache that holds k and v, in *cache.
const char* peers_cache_new(const Sizes* s, const float* k, const float* v, alibi::KvCache<float>** cache) {
  return guarded([&] {
    auto filled = std::make_unique<alibi::KvCache<float>>(
        alibi::KvCacheConfig{.batch = 1, .kv_heads = s->heads, .head_dim = s->head_dim, .capacity = s->keys});
    filled->append(keys(k, *s), keys(v, *s));
    *cache = filled.release();
  });
}
void peers_cache_delete(alibi::KvCache<float>* cache) { delete cache; }

const char* peers_decode(Session* session, const Sizes* s, const alibi::KvCache<float>* cache, const float* q,
                         const float* slopes, double tolerance, float* output) {
  return guarded([&] {
    alibi::attention_into(queries(output, *s), queries(q, *s), *cache, of_heads(slopes, s->heads),
                          session->options(tolerance));
  });
}

}  // extern "C"
