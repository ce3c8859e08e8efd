// Linear layers of many rows over packed weights, on one thread.
//
// A decode step reads every weight once and little of it twice, so memory sets its pace, unless something else is done while
// weights are on their way. Columns are taken in groups. While all rows are multiplied with one group, the next one is
// fetched (`fetch.h`). Weights of layers that follow each other lie one behind the other, so the next group may be the next
// layer's.
//
// A sum takes its terms in the order of the inputs, whatever rows it is computed beside. Shape letters: B rows, I inputs, O
// outputs, M inner outputs.

#include "linear.h"

#include "tiles.h"
#include "wide.h"

#ifdef HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Puts outputs into rows of a matrix, as many columns as it has.
struct ToRows {
    BFloat16* out;
    int64_t outputs;

    void operator()(int64_t row, int64_t column, __m512i values) const {
        const __mmask32 is_there = outputs - column >= Tiles::COLUMNS ? ~0u : (1u << (outputs - column)) - 1;
        _mm512_mask_storeu_epi16(out + row * outputs + column, is_there, values);
    }
};

// Puts outputs where the next product wants its inputs.
struct ToInputs {
    const PackedRows& inputs;

    void operator()(int64_t row, int64_t column, __m512i values) const {
        _mm512_storeu_si512(inputs.at(row, column / STEP), values);
    }
};

thread_local Scratch outer_scratch, inner_scratch;

}  // namespace
#endif

extern "C" {

bool multiplies_float32() {
#ifdef HAS_WIDE
    return true;
#else
    return false;
#endif
}

bool multiplies_bfloat16() {
#ifdef HAS_TILES
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

void linear_float32(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
                    int64_t is_gelu, float* out) {
#ifdef HAS_WIDE
    Wide::multiply(x, weights, bias, rows, inputs, outputs, is_gelu, out);
#endif
}

void linear_bfloat16(const BFloat16* x, const BFloat16* weights, const float* bias, int64_t rows, int64_t inputs,
                     int64_t outputs, int64_t is_gelu, BFloat16* out) {
#ifdef HAS_TILES
    const int64_t most = Tiles::rows_together(inputs);
    for (int64_t first = 0; first < rows; first += most) {
        const PackedRows packed(outer_scratch, std::min(most, rows - first), inputs);
        packed.fill(x + first * inputs);
        const ToRows put{out + first * outputs, outputs};
        is_gelu ? Tiles::multiply<true>(packed, weights, bias, outputs, put)
                : Tiles::multiply<false>(packed, weights, bias, outputs, put);
    }
#endif
}

void mlp_float32(const float* x, const float* weights_in, const float* bias_in, const float* weights_out, const float* bias_out,
                 int64_t rows, int64_t inputs, int64_t inner, float* out) {
#ifdef HAS_WIDE
    static thread_local Scratch scratch;
    float* between = scratch.take<float>(rows * inner);
    Wide::multiply(x, weights_in, bias_in, rows, inputs, inner, true, between);
    Wide::multiply(between, weights_out, bias_out, rows, inner, inputs, false, out);
#endif
}

void mlp_bfloat16(const BFloat16* x, const BFloat16* weights_in, const float* bias_in, const BFloat16* weights_out,
                  const float* bias_out, int64_t rows, int64_t inputs, int64_t inner, BFloat16* out) {
#ifdef HAS_TILES
    const int64_t most = Tiles::rows_together(inner);
    for (int64_t first = 0; first < rows; first += most) {
        const int64_t count = std::min(most, rows - first);
        const PackedRows outer(outer_scratch, count, inputs), between(inner_scratch, count, inner);
        outer.fill(x + first * inputs);
        Tiles::multiply<true>(outer, weights_in, bias_in, inner, ToInputs{between});
        Tiles::multiply<false>(between, weights_out, bias_out, inputs, ToRows{out + first * inputs, inputs});
    }
#endif
}

}  // extern "C"
