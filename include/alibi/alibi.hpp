// Includes all public headers but reference.hpp, which is for tests and research, and kv_cache_file.hpp, which saves
// caches to streams. Each header can also be included alone. All but tensor.hpp and bias.hpp, which use Eigen's
// tensors, need Eigen/Core only.
#pragma once

#include "alibi/active_isa.hpp"
#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/bias.hpp"
#include "alibi/cached_attention.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/layouts.hpp"
#include "alibi/mask.hpp"
#include "alibi/merge.hpp"
#include "alibi/position/rotary.hpp"
#include "alibi/position/sinusoidal.hpp"
#include "alibi/position/t5_bias.hpp"
#include "alibi/position/xpos.hpp"
#include "alibi/pruning.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/slopes.hpp"
#include "alibi/tensor.hpp"
#include "alibi/token_positions.hpp"
#include "alibi/two_sided.hpp"
#include "alibi/varlen.hpp"
#include "alibi/version.hpp"
