// The variables that code blocks of the documentation use. They are declared and never defined, because the blocks are
// compiled and not run.
#pragma once

#include <unsupported/Eigen/CXX11/Tensor>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <vector>

#include "alibi/alibi.hpp"

using Tensor3 = Eigen::Tensor<float, 3, Eigen::RowMajor>;
using Tensor4 = Eigen::Tensor<float, 4, Eigen::RowMajor>;

extern const alibi::Index batch, heads, kv_heads, queries, keys, head_dim;
extern Tensor4 q, k, v, grad_output, grad_q, grad_k, grad_v;
extern Tensor3 q_varlen, k_varlen, v_varlen;
extern Eigen::VectorXf slopes;
extern Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> weights;
extern Eigen::ThreadPool pool;
extern const float *q_data, *k_data, *v_data;
extern float* output_data;

// Used by examples/guides.
#include <fstream>
#include <iostream>
#include <thread>

#include "alibi/kv_cache_file.hpp"
extern const float* qkv_data;

// Used by examples/guides/context_parallel.md.
#if __has_include(<mpi.h>)
#include "alibi/mpi.hpp"
extern alibi::ContextParallel parallel;
extern const alibi::Index local_tokens;
extern alibi::KvCache<float> cache;
#endif
