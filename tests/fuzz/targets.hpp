// The functions that the fuzzer's bytes can call.
#pragma once

#include "input.hpp"

namespace fuzz {

void run_attention(Input& in);  // attention over arrays, varlen and padded batches
void run_cache(Input& in);      // a KvCache, through any history

}  // namespace fuzz
