// What the fuzzer's bytes may drive.
#pragma once

#include "input.hpp"

namespace fuzz {

void run_attention(Input& in);  // attention over arrays, packed and padded batches
void run_cache(Input& in);      // a KvCache, through any history

}  // namespace fuzz
