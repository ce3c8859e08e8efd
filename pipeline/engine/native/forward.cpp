// GPT-2's layers one after another: what `GPT2._forward` says of them in torch, in one call.
//
// Python and torch take a tenth of a step between kernels, since these leave nothing of theirs in the cache. What layers hand
// on lies in the same memory each time, which stays there. Shape letters: N tokens, M of them wanted, E width, H heads, D head
// size, V vocabulary.

#include <cstring>

#include "attention.h"
#include "linear.h"
#include "norm.h"
#include "scratch.h"

namespace {

// A linear layer: packed weights and biases, as `linear_float32` and `linear_bfloat16` take them.
template <typename Element>
struct Dense {
    const Element* weights;
    const float* bias;
};

// A transformer layer and the norm behind it, which is the next one's first, or the last of all. Python has the same.
template <typename Element>
struct Block {
    Dense<Element> attn_in, attn_out;
    Norm<Element> ln_2;
    Dense<Element> mlp_in, mlp_out;
    Norm<Element> next_norm;
    float scale;
};

// Embeddings of tokens (V, E) and positions, and the layers. Python has the same.
template <typename Element>
struct Model {
    const Element *wte, *wpe;
    Norm<Element> first_norm;
    const Block<Element>* blocks;
    int64_t layers, width, inner, heads;
    float epsilon;
};

// (layers, 2P * E); (C, `longest`); and P. Python has the same.
template <typename Element>
struct Cache {
    Element* kept;
    int64_t* token_ids;
    Places places;
    int64_t positions, longest;
};

// (N,) each.
struct Tokens {
    const int64_t *ids, *slots, *positions;
    int64_t count;
};

void linear(const float* x, const Dense<float>& layer, int64_t rows, int64_t inputs, int64_t outputs, const Layout& layout,
            float* out) {
    linear_float32(x, layer.weights, layer.bias, rows, inputs, outputs, false, &layout, out);
}
void linear(const BFloat16* x, const Dense<BFloat16>& layer, int64_t rows, int64_t inputs, int64_t outputs,
            const Layout& layout, BFloat16* out) {
    linear_bfloat16(x, layer.weights, layer.bias, rows, inputs, outputs, false, &layout, out);
}

void mlp(const float* x, const Block<float>& block, int64_t rows, int64_t width, int64_t inner, float* out) {
    mlp_float32(x, block.mlp_in.weights, block.mlp_in.bias, block.mlp_out.weights, block.mlp_out.bias, rows, width, inner, out);
}
void mlp(const BFloat16* x, const Block<BFloat16>& block, int64_t rows, int64_t width, int64_t inner, BFloat16* out) {
    mlp_bfloat16(x, block.mlp_in.weights, block.mlp_in.bias, block.mlp_out.weights, block.mlp_out.bias, rows, width, inner, out);
}

template <typename Element>
void forward(const Model<Element>& model, const Cache<Element>& cache, const Tokens& tokens, const int64_t* wanted,
             int64_t num_wanted, Element* out) {
    static thread_local Scratch scratch;
    const int64_t width = model.width, area = tokens.count * width;
    Element *x = scratch.take<Element>(7 * area), *normed = x + area, *update = normed + area, *mixed = update + area,
            *fused = mixed + area;
    int64_t rows = tokens.count;
    const Layout by_groups{GROUP, rows * GROUP};  // side by side: rows of 3E would share few places of the first-level cache
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t id = tokens.ids[row], position = tokens.positions[row];
        cache.token_ids[tokens.slots[row] * cache.longest + position] = id;
        add(model.wte + id * width, model.wpe + position * width, width, x + row * width);
    }
    add_norm<Element>(x, nullptr, model.first_norm, rows, width, model.epsilon, normed);
    for (int64_t layer = 0; layer < model.layers; ++layer) {
        const Block<Element>& block = model.blocks[layer];
        const bool is_last = layer + 1 == model.layers;
        linear(normed, block.attn_in, rows, width, 3 * width, by_groups, fused);
        attend({fused, by_groups}, cache.kept + 2 * layer * cache.positions * width, cache.places, tokens.slots,
               tokens.positions, rows, model.heads, width / model.heads, block.scale, mixed);
        if (is_last && wanted) {
            rows = num_wanted;
            for (int64_t row = 0; row < rows; ++row) {
                std::memmove(x + row * width, x + wanted[row] * width, width * sizeof(Element));
                std::memmove(mixed + row * width, mixed + wanted[row] * width, width * sizeof(Element));
            }
        }
        linear(mixed, block.attn_out, rows, width, width, {width, GROUP}, update);
        add_norm(x, update, block.ln_2, rows, width, model.epsilon, normed);
        mlp(normed, block, rows, width, model.inner, update);
        add_norm(x, update, block.next_norm, rows, width, model.epsilon, is_last ? out : normed);
    }
}

}  // namespace

extern "C" {

// Put tokens through all layers; those of a slot stand together and in order. `wanted` (M,), ascending, says of which the states
// behind the last norm are wanted, (M, E); null for all.
void forward_float32(const Model<float>* model, const Cache<float>* cache, const Tokens* tokens, const int64_t* wanted,
                     int64_t num_wanted, float* out) {
    forward(*model, *cache, *tokens, wanted, num_wanted, out);
}

void forward_bfloat16(const Model<BFloat16>* model, const Cache<BFloat16>* cache, const Tokens* tokens,
                      const int64_t* wanted, int64_t num_wanted, BFloat16* out) {
    forward(*model, *cache, *tokens, wanted, num_wanted, out);
}

}  // extern "C"
