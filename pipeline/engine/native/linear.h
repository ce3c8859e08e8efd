// Linear layers over packed weights; see `linear.cpp` for how.

#pragma once

#include <cstdint>

#include "vectors.h"

constexpr int64_t GROUP = 32;  // outputs that are taken together; Python has the same

// Where outputs lie, in elements: from a row to the next, and from a group of outputs of a row to its next one. Python has the
// same.
struct Layout {
    int64_t row, group;
};

extern "C" {

// Whether the functions for float32 work on this processor.
bool multiplies_float32();

// Whether those for bfloat16 do. The system must allow a process its matrix registers.
bool multiplies_bfloat16();

// Multiply `x` (B, I) with packed weights, add `bias` and apply GELU if asked. Outputs are taken in groups, the last one filled
// with zeros; `bias` is as long, and `out`, laid out as asked, has room for it. I is a multiple of 32. `weights` holds a group
// after the other, of each (I / 32, 2, 32, 16): inputs, sixteen outputs, an input of 32, outputs.
void linear_float32(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
                    int64_t is_gelu, const Layout* layout, float* out);

// The same in bfloat16, with sums in float32. `weights` holds of each group (I / 32, 2, 16, 16, 2): inputs, sixteen outputs,
// pairs of inputs, outputs, the two of a pair.
void linear_bfloat16(const BFloat16* x, const BFloat16* weights, const float* bias, int64_t rows, int64_t inputs,
                     int64_t outputs, int64_t is_gelu, const Layout* layout, BFloat16* out);

// Two of them, I to M with GELU and M to I: `out` (B, I).
void mlp_float32(const float* x, const float* weights_in, const float* bias_in, const float* weights_out, const float* bias_out,
                 int64_t rows, int64_t inputs, int64_t inner, float* out);
void mlp_bfloat16(const BFloat16* x, const BFloat16* weights_in, const float* bias_in, const BFloat16* weights_out,
                  const float* bias_out, int64_t rows, int64_t inputs, int64_t inner, BFloat16* out);

}  // extern "C"
