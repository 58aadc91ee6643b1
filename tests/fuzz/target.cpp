// The entry of libFuzzer. The first byte selects the target of the others.
#include <cstddef>

#include "targets.hpp"

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input in(data, size);
  in.flag() ? fuzz::run_cache(in) : fuzz::run_attention(in);
  return 0;
}
