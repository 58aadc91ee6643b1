// Keeps OpenBLAS on the thread that calls it. The examples have threads of their own, each of which multiplies. For
// sources that alibi_use_blas() of CMakeLists.txt compiles.
#pragma once

#if defined(ALIBI_EXAMPLE_OPENBLAS)
extern "C" void openblas_set_num_threads(int);

inline const bool kOneBlasThread = (openblas_set_num_threads(1), true);
#endif
