// Linear layers over packed weights; see `linear.cpp` for how.

#pragma once

#include <cstdint>

#include "vectors.h"

extern "C" {

// Whether the functions for float32 work on this processor.
bool multiplies_float32();

// Whether those for bfloat16 do. The system must allow a process its matrix registers.
bool multiplies_bfloat16();

// Multiply `x` (B, I) with packed weights, add `bias` and apply GELU if asked: `out` (B, O). Outputs are taken in groups of 48,
// the last one filled with zeros; `bias` is as long. `weights` holds a group after the other, (I, 48) each; I is a multiple of
// 16.
void linear_float32(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
                    int64_t is_gelu, float* out);

// The same in bfloat16, with sums in float32, in groups of 32 outputs. `weights` holds of each group (I / 32, 2, 16, 16, 2):
// inputs, sixteen outputs, pairs of inputs, outputs, the two of a pair; I is a multiple of 32.
void linear_bfloat16(const BFloat16* x, const BFloat16* weights, const float* bias, int64_t rows, int64_t inputs,
                     int64_t outputs, int64_t is_gelu, BFloat16* out);

// Two of them, I to M with GELU and M to I: `out` (B, I).
void mlp_float32(const float* x, const float* weights_in, const float* bias_in, const float* weights_out, const float* bias_out,
                 int64_t rows, int64_t inputs, int64_t inner, float* out);
void mlp_bfloat16(const BFloat16* x, const BFloat16* weights_in, const float* bias_in, const BFloat16* weights_out,
                  const float* bias_out, int64_t rows, int64_t inputs, int64_t inner, BFloat16* out);

}  // extern "C"
