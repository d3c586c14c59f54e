// Kernels for AVX2 with FMA: no 8-bit dot product, so products pass through 16 bits.
#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LW_TARGET __attribute__((target("avx2,fma,f16c")))

namespace {

constexpr int64_t AHEAD = 2048;  // bytes

LW_TARGET void fill_unsigned(const int8_t* q, uint8_t* u, int count) {
    for (int i = 0; i < count; i += 32)
        _mm256_storeu_si256((__m256i*)(u + i), _mm256_abs_epi8(_mm256_loadu_si256((const __m256i*)(q + i))));
}

LW_TARGET inline __m256i spread(const void* at) {  // 4 bytes to every lane
    return _mm256_castps_si256(_mm256_broadcast_ss((const float*)at));
}

// Rows r to r + MB of the activations times one tile: out (MB, 32). One pass does JB of the tile's four vectors of rows.
template <int F, int MB>
LW_TARGET void tile(const uint8_t* tile_at, lw::Acts acts, int r, float* out) {
    constexpr int JB = 4 / MB;
    constexpr int64_t head = F == LW_Q8_CHANNEL ? 0 : F == LW_Q4_MIN ? 128 : 64;
    const int64_t groups = acts.columns / lw::GROUP, bytes = lw::group_bytes(F);
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    const int8_t* q = acts.q + r * (int64_t)acts.columns;
    const uint8_t* u = acts.u + r * (int64_t)acts.columns;
    for (int pass = 0; pass < 4; pass += JB) {
        const uint8_t* at = tile_at;
        __m256 sums[MB][JB];
        for (int b = 0; b < MB; b++)
            for (int j = 0; j < JB; j++) sums[b][j] = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; g++, at += bytes) {
            const uint8_t* codes = at + head + pass * 32;
            if (MB == 1)  // the processor's own look ahead ends with a page of 4 KiB
                for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch((const char*)at + AHEAD + line, _MM_HINT_T0);
            __m256i whole[MB][JB];
            for (int b = 0; b < MB; b++)
                for (int j = 0; j < JB; j++) whole[b][j] = _mm256_setzero_si256();
            if constexpr (F == LW_Q8_CHANNEL || F == LW_Q8_GROUP) {
#pragma GCC unroll 8
                for (int step = 0; step < 8; step++) {
                    __m256i w[JB];
                    for (int j = 0; j < JB; j++) w[j] = _mm256_load_si256((const __m256i*)(codes + step * 128 + j * 32));
                    for (int b = 0; b < MB; b++) {
                        const int64_t k = b * (int64_t)acts.columns + g * lw::GROUP + step * 4;
                        const __m256i x = spread(q + k), size = spread(u + k);
                        for (int j = 0; j < JB; j++) {  // at most 2 * 127 * 127: no 16-bit overflow
                            const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w[j], x));
                            whole[b][j] = _mm256_add_epi32(whole[b][j], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
            } else {
#pragma GCC unroll 4
                for (int run = 0; run < 4; run++) {
                    __m256i w[JB];
                    for (int j = 0; j < JB; j++) w[j] = _mm256_load_si256((const __m256i*)(codes + run * 128 + j * 32));
                    for (int b = 0; b < MB; b++) {
                        const int64_t k = b * (int64_t)acts.columns + g * lw::GROUP + run * 4;
                        const __m256i x = spread(q + k), later = spread(q + k + 16);
                        for (int j = 0; j < JB; j++) {  // 16 products of at most 15 * 127: they fit 16 bits together
                            const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(w[j], low), x);
                            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w[j], 4), low);
                            const __m256i both = _mm256_add_epi16(a, _mm256_maddubs_epi16(high, later));
                            whole[b][j] = _mm256_add_epi16(whole[b][j], both);
                        }
                    }
                }
                for (int b = 0; b < MB; b++)
                    for (int j = 0; j < JB; j++) whole[b][j] = _mm256_madd_epi16(whole[b][j], ones);
            }
            for (int j = 0; j < JB; j++) {
                __m256 own = _mm256_setzero_ps(), least = own;
                if constexpr (F != LW_Q8_CHANNEL)
                    own = _mm256_cvtph_ps(_mm_load_si128((const __m128i*)(at + (pass + j) * 16)));
                if constexpr (F == LW_Q4_PLAIN) least = _mm256_mul_ps(_mm256_set1_ps(-8.0f), own);
                if constexpr (F == LW_Q4_MIN)
                    least = _mm256_cvtph_ps(_mm_load_si128((const __m128i*)(at + 64 + (pass + j) * 16)));
                for (int b = 0; b < MB; b++) {
                    const int64_t place = (r + b) * groups + g;
                    __m256 scale = _mm256_broadcast_ss(acts.scale + place);
                    if constexpr (F != LW_Q8_CHANNEL) scale = _mm256_mul_ps(scale, own);
                    sums[b][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[b][j]), scale, sums[b][j]);
                    if constexpr (F == LW_Q4_PLAIN || F == LW_Q4_MIN)
                        sums[b][j] = _mm256_fmadd_ps(_mm256_broadcast_ss(acts.sum + place), least, sums[b][j]);
                }
            }
        }
        for (int b = 0; b < MB; b++)
            for (int j = 0; j < JB; j++) {
                __m256 sum = sums[b][j];
                if constexpr (F == LW_Q8_CHANNEL)
                    sum = _mm256_mul_ps(sum, _mm256_load_ps((const float*)at + (pass + j) * 8));
                _mm256_store_ps(out + b * lw::TILE + (pass + j) * 8, sum);
            }
    }
}

#include "ops.inl"

bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

const lw::Kernels lw::avx2 = {"avx2", runs_here, quantise, matmul, rmsnorm, swiglu, attend};

#else
const lw::Kernels lw::avx2 = {"avx2", [] { return false; }, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
