// What the compiler knows. Holds no code: the isa_*.cpp include it before they choose their instruction set.
#pragma once

// Instructions for bfloat16, AMX's among them: GCC 11 and clang 12 are the first that know all that is needed.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define G2LSTM_BUILDS_BFLOAT16
#endif
