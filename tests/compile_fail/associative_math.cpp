// expect: refused
// flags: -fassociative-math -fno-signed-zeros -fno-trapping-math
#include "alibi/alibi.hpp"
