// Everything. Each header also stands alone; all but tensor.hpp and bias.hpp need Eigen/Core only.
#pragma once

#include "alibi/attention.hpp"
#include "alibi/bias.hpp"
#include "alibi/decode.hpp"
#include "alibi/horizon.hpp"
#include "alibi/kv_cache.hpp"
#include "alibi/mask.hpp"
#include "alibi/packed.hpp"
#include "alibi/slopes.hpp"
#include "alibi/tensor.hpp"
