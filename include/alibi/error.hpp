// How bad input is reported: std::invalid_argument that names the argument, what it was and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>

#include "alibi/kernel/isa.hpp"

namespace alibi::inline ALIBI_ISA::detail {

/// Throws std::invalid_argument("alibi: " + parts) unless `ok`. The parts are put together only when they are needed.
template <class... Parts>
void require(bool ok, const Parts&... parts) {
  if (ok) [[likely]]
    return;
  std::ostringstream message;
  message << "alibi: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace alibi::inline ALIBI_ISA::detail
