// Everything. Each header also stands alone; all but tensor.hpp and bias.hpp need Eigen/Core only.
#pragma once

#include "alibi/attention.hpp"
#include "alibi/backward.hpp"
#include "alibi/bias.hpp"
#include "alibi/decode.hpp"
#include "alibi/horizon.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/mask.hpp"
#include "alibi/packed.hpp"
#include "alibi/packed_backward.hpp"
#include "alibi/position/rotary.hpp"
#include "alibi/position/sinusoidal.hpp"
#include "alibi/position/t5_bias.hpp"
#include "alibi/slopes.hpp"
#include "alibi/table_bias.hpp"
#include "alibi/tensor.hpp"
