// expect: alibi needs C\+\+20
// flags: -std=c++17
#include "alibi/alibi.hpp"
