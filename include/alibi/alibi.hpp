// All public headers. Each can also be included alone; all but tensor.hpp and bias.hpp need Eigen/Core only.
#pragma once

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/bias.hpp"
#include "alibi/cached_attention.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/layouts.hpp"
#include "alibi/mask.hpp"
#include "alibi/position/rotary.hpp"
#include "alibi/position/sinusoidal.hpp"
#include "alibi/position/t5_bias.hpp"
#include "alibi/pruning.hpp"
#include "alibi/relative_bias.hpp"
#include "alibi/slopes.hpp"
#include "alibi/tensor.hpp"
#include "alibi/varlen.hpp"
#include "alibi/version.hpp"
