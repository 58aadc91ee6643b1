// expect: finite-math
// flags: -ffinite-math-only
#include "alibi/alibi.hpp"
