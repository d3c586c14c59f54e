// Kernels for AVX-512 with VNNI: one instruction multiplies 64 pairs of bytes and adds them up.
#include "core.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LW_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

namespace {

LW_TARGET void fill_unsigned(const int8_t* q, uint8_t* u, int count) {
    for (int i = 0; i < count; i++) u[i] = (uint8_t)(q[i] + 128);
}

LW_TARGET inline __m512i spread(const void* at) {  // 4 bytes to every lane
    return _mm512_castps_si512(_mm512_set1_ps(*(const float*)at));
}

// Rows r to r + MB of the activations times one tile: out (MB, 32).
template <int F, int MB>
LW_TARGET void tile(const uint8_t* at, lw::Acts acts, int r, float* out) {
    constexpr int64_t head = F == LW_Q8_CHANNEL ? 0 : F == LW_Q4_MIN ? 128 : 64;
    const int64_t groups = acts.columns / lw::GROUP, bytes = lw::group_bytes(F);
    const __m512i shift = _mm512_set1_epi8((char)128), low = _mm512_set1_epi8(15);
    const int8_t* q = acts.q + r * (int64_t)acts.columns;
    const uint8_t* u = acts.u + r * (int64_t)acts.columns;
    __m512 sums[MB][2];
    for (int b = 0; b < MB; b++)
        for (int j = 0; j < 2; j++) sums[b][j] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, at += bytes) {
        const uint8_t* codes = at + head;
        __m512i whole[MB][2];
        for (int b = 0; b < MB; b++)
            for (int j = 0; j < 2; j++) whole[b][j] = _mm512_setzero_si512();
        if constexpr (F == LW_Q8_CHANNEL || F == LW_Q8_GROUP) {
            __m512i extra[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};  // what q + 128 brings too much
#pragma GCC unroll 8
            for (int step = 0; step < 8; step++) {
                __m512i w[2];
                for (int j = 0; j < 2; j++) {
                    w[j] = _mm512_load_si512(codes + step * 128 + j * 64);
                    extra[j] = _mm512_dpbusd_epi32(extra[j], shift, w[j]);
                }
                for (int b = 0; b < MB; b++) {
                    const __m512i x = spread(u + b * (int64_t)acts.columns + g * lw::GROUP + step * 4);
                    for (int j = 0; j < 2; j++) whole[b][j] = _mm512_dpbusd_epi32(whole[b][j], x, w[j]);
                }
            }
            for (int b = 0; b < MB; b++)
                for (int j = 0; j < 2; j++) whole[b][j] = _mm512_sub_epi32(whole[b][j], extra[j]);
        } else {
#pragma GCC unroll 4
            for (int run = 0; run < 4; run++) {
                __m512i first[2], second[2];
                for (int j = 0; j < 2; j++) {
                    const __m512i w = _mm512_load_si512(codes + run * 128 + j * 64);
                    first[j] = _mm512_and_si512(w, low);
                    second[j] = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
                }
                for (int b = 0; b < MB; b++) {
                    const int64_t k = b * (int64_t)acts.columns + g * lw::GROUP + run * 4;
                    const __m512i x = spread(q + k), later = spread(q + k + 16);
                    for (int j = 0; j < 2; j++) {
                        whole[b][j] = _mm512_dpbusd_epi32(whole[b][j], first[j], x);
                        whole[b][j] = _mm512_dpbusd_epi32(whole[b][j], second[j], later);
                    }
                }
            }
        }
        for (int j = 0; j < 2; j++) {
            __m512 own = _mm512_setzero_ps(), least = own;
            if constexpr (F != LW_Q8_CHANNEL)
                own = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(at + j * 32)));
            if constexpr (F == LW_Q4_PLAIN) least = _mm512_mul_ps(_mm512_set1_ps(-8.0f), own);
            if constexpr (F == LW_Q4_MIN)
                least = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(at + 64 + j * 32)));
            for (int b = 0; b < MB; b++) {
                const int64_t place = (r + b) * groups + g;
                __m512 scale = _mm512_set1_ps(acts.scale[place]);
                if constexpr (F != LW_Q8_CHANNEL) scale = _mm512_mul_ps(scale, own);
                sums[b][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[b][j]), scale, sums[b][j]);
                if constexpr (F == LW_Q4_PLAIN || F == LW_Q4_MIN)
                    sums[b][j] = _mm512_fmadd_ps(_mm512_set1_ps(acts.sum[place]), least, sums[b][j]);
            }
        }
    }
    for (int b = 0; b < MB; b++)
        for (int j = 0; j < 2; j++) {
            __m512 sum = sums[b][j];
            if constexpr (F == LW_Q8_CHANNEL) sum = _mm512_mul_ps(sum, _mm512_load_ps((const float*)at + j * 16));
            _mm512_store_ps(out + b * lw::TILE + j * 16, sum);
        }
}

#include "ops.inl"

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

const lw::Kernels lw::avx512 = {"avx512", runs_here, quantise, matmul, rmsnorm, swiglu, attend};

#else
const lw::Kernels lw::avx512 = {"avx512", [] { return false; }, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
