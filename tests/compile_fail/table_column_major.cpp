// expect: a table is \[heads, entries\] and must be row-major
#include "alibi/alibi.hpp"

auto column_major(const Eigen::MatrixXf& table) { return alibi::relative_bias(table); }
