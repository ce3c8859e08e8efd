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
#endif

namespace {

// Whether the system lets this process have matrix registers.
bool has_tiles() {
#ifdef HAS_TILES
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    static const bool is_allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return is_allowed;
#else
    return false;
#endif
}

}  // namespace

extern "C" {

bool multiplies_float32() {
#ifdef HAS_WIDE
    return true;
#else
    return false;
#endif
}

bool multiplies_bfloat16() { return has_tiles(); }

void linear_float32(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
                    int64_t is_gelu, const Layout* layout, float* out) {
#ifdef HAS_TILES
    if (has_tiles()) return Tiles<float>::linear(x, weights, bias, rows, inputs, outputs, is_gelu, *layout, out);
#endif
#ifdef HAS_WIDE
    Wide::multiply(x, weights, bias, rows, inputs, outputs, is_gelu, *layout, out);
#endif
}

void linear_bfloat16(const BFloat16* x, const BFloat16* weights, const float* bias, int64_t rows, int64_t inputs,
                     int64_t outputs, int64_t is_gelu, const Layout* layout, BFloat16* out) {
#ifdef HAS_TILES
    Tiles<BFloat16>::linear(x, weights, bias, rows, inputs, outputs, is_gelu, *layout, out);
#endif
}

void mlp_float32(const float* x, const float* weights_in, const float* bias_in, const float* weights_out, const float* bias_out,
                 int64_t rows, int64_t inputs, int64_t inner, float* out) {
#ifdef HAS_TILES
    if (has_tiles()) return Tiles<float>::mlp(x, weights_in, bias_in, weights_out, bias_out, rows, inputs, inner, out);
#endif
#ifdef HAS_WIDE
    static thread_local Scratch scratch;
    float* between = scratch.take<float>(rows * inner);
    Wide::multiply(x, weights_in, bias_in, rows, inputs, inner, true, {inner, GROUP}, between);
    Wide::multiply(between, weights_out, bias_out, rows, inner, inputs, false, {inputs, GROUP}, out);
#endif
}

void mlp_bfloat16(const BFloat16* x, const BFloat16* weights_in, const float* bias_in, const BFloat16* weights_out,
                  const float* bias_out, int64_t rows, int64_t inputs, int64_t inner, BFloat16* out) {
#ifdef HAS_TILES
    Tiles<BFloat16>::mlp(x, weights_in, bias_in, weights_out, bias_out, rows, inputs, inner, out);
#endif
}

}  // extern "C"
