// One decoder on a CPU: what crosses the border to Python (C ABI), and what the kernels of each instruction set offer.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

extern "C" {

// How a matrix lies in memory: tiles of 32 output rows; in a tile groups of 32 columns; in a group steps of 4 columns,
// each 32 rows x 4 bytes. So one vector holds 4 columns of 8 or 16 rows, and sums need no shuffles.
enum lw_format : int32_t {
    LW_Q8_CHANNEL,  // int8; after the groups of a tile 32 float scales, one a row
    LW_Q8_GROUP,    // a group begins with 32 half scales, one a row (ggml's Q8_0)
    LW_Q4_PLAIN,    // 32 half scales, then nibbles q of value (q - 8) * scale (ggml's Q4_0)
    LW_Q4_MIN,      // 32 half scales, 32 half minima, then nibbles q of value q * scale + minimum (ggml's Q4_1)
};                  // nibbles: 4 runs of 128 bytes; run c holds step c in the low halves and step c + 4 in the high ones

struct lw_matrix {
    const uint8_t* tiles;
    const float* bias;  // (rows,) or null
    int32_t rows, columns, format, unused;
};

struct lw_layer {
    lw_matrix q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm;  // the last two may be null
};

struct lw_model {
    const lw_layer* layers;
    lw_matrix embed, head;
    const float *final_norm, *cos, *sin;  // rotary tables (positions, rotated / 2)
    int32_t n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, rotated, unused;
    float eps, scale;
};

struct lw_cache {
    float *keys, *values;  // (layers, slots, n_kv_heads, capacity, d_head)
    int32_t slots, capacity;
};

const char* lw_kernels(const char* wanted);  // choose by name, or the best for null; returns what is in force, or null
int lw_threads(int wanted);                  // threads of a call from now on, the caller's included; returns them
int lw_matmul(const lw_matrix* matrix, int32_t rows, const float* x, float* y);
void lw_embed(const lw_matrix* matrix, int32_t count, const int32_t* ids, float* out);
// Tokens (count,) of slots at positions through the model; logits (n_wanted, vocabulary) after the rows ``wanted``,
// ascending. 0, or -1 when an argument is out of bounds.
int lw_forward(const lw_model* model, const lw_cache* cache, int32_t count, const int32_t* tokens, const int32_t* slots,
               const int32_t* positions, int32_t n_wanted, const int32_t* wanted, float* logits);
}

namespace lw {

constexpr int TILE = 32, GROUP = 32, ROWS = 32;  // rows of a tile, columns of a group, tokens that go through at once

// Activations in groups of 32 columns: value = q * scale.
struct Acts {
    int8_t* q;      // (rows, columns), -127 to 127
    uint8_t* u;     // the same as the kernels want to multiply it unsigned: |q|, or q + 128
    float* scale;   // (rows, columns / 32)
    float* sum;     // scale times the sum of q
    int columns;
};

struct Kernels {
    const char* name;
    bool (*runs_here)();
    void (*quantise)(const float* x, Acts acts, int row);
    // Rows of y (m, ld) from tiles first to last of the matrix; with ``add`` onto what is there.
    void (*matmul)(const lw_matrix& matrix, Acts acts, int m, int first, int last, float* y, int64_t ld, bool add);
    void (*rmsnorm)(const float* x, const float* weight, int size, float eps, float* out);
    void (*swiglu)(float* gate, const float* up, int size);  // gate = silu(gate) * up; a multiple of 16
    // One query over ``length`` keys and values (length, size); ``scores`` is room for them, rounded up to 8.
    void (*attend)(const float* q, const float* keys, const float* values, int length, int size, float scale,
                   float* scores, float* out);
};

extern const Kernels portable, avx2, avx512;

inline int64_t group_bytes(int format) {
    return format == LW_Q8_CHANNEL ? 1024 : format == LW_Q8_GROUP ? 1088 : format == LW_Q4_PLAIN ? 576 : 640;
}

inline int64_t tile_bytes(const lw_matrix& m) {
    return m.columns / GROUP * group_bytes(m.format) + (m.format == LW_Q8_CHANNEL ? TILE * 4 : 0);
}

inline int tiles_of(const lw_matrix& m) { return (m.rows + TILE - 1) / TILE; }

}  // namespace lw
