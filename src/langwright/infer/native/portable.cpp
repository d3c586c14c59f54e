// The plain kernels: every machine runs them, and the others must give the same bits.
#include "core.h"
#include "half.h"


#define LW_TARGET

namespace {

void fill_unsigned(const int8_t* q, uint8_t* u, int count) {
    for (int i = 0; i < count; i++) u[i] = (uint8_t)(q[i] < 0 ? -q[i] : q[i]);
}

// Rows r to r + MB of the activations times one tile: out (MB, 32).
template <int F, int MB>
void tile(const uint8_t* at, lw::Acts acts, int r, float* out) {
    constexpr bool q8 = F == LW_Q8_CHANNEL || F == LW_Q8_GROUP;
    const int64_t groups = acts.columns / lw::GROUP;
    for (int i = 0; i < MB * lw::TILE; i++) out[i] = 0;
    for (int64_t g = 0; g < groups; g++, at += lw::group_bytes(F)) {
        const uint8_t* scales = at;
        const uint8_t* minima = at + 64;
        const uint8_t* codes = at + (F == LW_Q8_CHANNEL ? 0 : F == LW_Q4_MIN ? 128 : 64);
        for (int b = 0; b < MB; b++) {
            const int8_t* q = acts.q + (r + b) * (int64_t)acts.columns + g * lw::GROUP;
            const float scale = acts.scale[(r + b) * groups + g], sum = acts.sum[(r + b) * groups + g];
            for (int n = 0; n < lw::TILE; n++) {
                int32_t total = 0;
                for (int step = 0; step < 8; step++)
                    for (int k = 0; k < 4; k++) {
                        const int code = q8 ? (int8_t)codes[step * 128 + n * 4 + k]
                                            : codes[step % 4 * 128 + n * 4 + k] >> (step / 4 * 4) & 15;
                        total += code * q[step * 4 + k];
                    }
                float& to = out[b * lw::TILE + n];
                if (F == LW_Q8_CHANNEL) {
                    to = std::fma((float)total, scale, to);
                    continue;
                }
                const float own = lw::half(scales + 2 * n);
                to = std::fma((float)total, scale * own, to);
                if (F == LW_Q4_PLAIN) to = std::fma(sum, -8.0f * own, to);
                if (F == LW_Q4_MIN) to = std::fma(sum, lw::half(minima + 2 * n), to);
            }
        }
    }
    if (F == LW_Q8_CHANNEL)
        for (int i = 0; i < MB * lw::TILE; i++) out[i] *= ((const float*)at)[i % lw::TILE];
}

#include "ops.inl"

bool always() { return true; }

}  // namespace

const lw::Kernels lw::portable = {"portable", always, quantise, matmul, rmsnorm, swiglu, attend};
