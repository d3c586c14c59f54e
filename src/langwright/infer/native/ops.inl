// What every set of kernels shares, compiled once for each: the including file defines LW_TARGET (a function attribute),
// `fill_unsigned` and `tile`. Sums have a fixed order and nothing is contracted, so all sets give the same bits.

// Eight lanes, which AVX2 has in hardware; the plain kernels get the same sums out of what the compiler makes of them.
typedef float f8v __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8v __attribute__((vector_size(32), aligned(4), may_alias));
typedef float f4v __attribute__((vector_size(16)));

static inline LW_TARGET const f8v& at8(const float* x) { return *(const f8v*)x; }

static inline LW_TARGET float add_lanes(const f8v& x) {
    const f4v four = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline LW_TARGET float largest_lane(const f8v& x) {
    const f4v a = __builtin_shufflevector(x, x, 0, 1, 2, 3), b = __builtin_shufflevector(x, x, 4, 5, 6, 7);
    const f4v four = a > b ? a : b;
    const float even = four[0] > four[2] ? four[0] : four[2], odd = four[1] > four[3] ? four[1] : four[3];
    return even > odd ? even : odd;
}

static inline LW_TARGET float dot(const float* a, const float* b, int size) {
    f8v sums[2] = {};
    int i = 0;
    for (; i + 16 <= size; i += 16) {
        sums[0] += at8(a + i) * at8(b + i);
        sums[1] += at8(a + i + 8) * at8(b + i + 8);
    }
    float total = add_lanes(sums[0] + sums[1]);
    for (; i < size; i++) total += a[i] * b[i];
    return total;
}

// e^x of 8 numbers in place: 2^n times a polynomial of degree 6 (the coefficients of Cephes' expf); relative error 2e-7.
static inline LW_TARGET void exp8(f8v& x) {
    const f8v none = {}, least = none - 87.0f, most = none + 88.0f;
    x = x < least ? least : x;
    x = x > most ? most : x;
    const f8v n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // nearest whole number
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    f8v y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    const i8v power = (__builtin_convertvector(n, i8v) + 127) << 23;
    x = y * (f8v)power;
}

static LW_TARGET void quantise(const float* x, lw::Acts acts, int row) {
    int8_t* q = acts.q + (int64_t)row * acts.columns;
    const int64_t groups = acts.columns / lw::GROUP;
    for (int64_t g = 0; g < groups; g++, x += lw::GROUP, q += lw::GROUP) {
        f8v top = {}, odd = {};
        for (int i = 0; i < lw::GROUP; i += 8) {
            const f8v part = at8(x + i), size = part > -part ? part : -part;
            top = size > top ? size : top;
            odd += part - part;  // NaN where a number is not finite, which the comparisons would lose
        }
        const float most = largest_lane(top) + add_lanes(odd), scale = most / 127.0f;  // NaN reaches the logits
        const float inverse = most > 1e-35f ? 127.0f / most : 0.0f;                    // below, it would overflow
        int32_t whole[lw::GROUP];
        i8v sums = {};
        for (int i = 0; i < lw::GROUP; i += 8) {  // to the nearest, ties to even
            const i8v part = __builtin_convertvector((at8(x + i) * inverse + 12582912.0f) - 12582912.0f, i8v);
            sums += part;
            std::memcpy(whole + i, &part, sizeof part);
        }
        int32_t sum = 0;
        for (int i = 0; i < 8; i++) sum += sums[i];
        for (int i = 0; i < lw::GROUP; i++) q[i] = (int8_t)whole[i];
        acts.scale[row * groups + g] = scale;
        acts.sum[row * groups + g] = scale * (float)sum;
    }
    fill_unsigned(acts.q + (int64_t)row * acts.columns, acts.u + (int64_t)row * acts.columns, acts.columns);
}

static LW_TARGET void rmsnorm(const float* x, const float* weight, int size, float eps, float* out) {
    const float inverse = 1.0f / std::sqrt(dot(x, x, size) / (float)size + eps);
    int i = 0;
    for (; i + 8 <= size; i += 8) *(f8v*)(out + i) = at8(x + i) * inverse * at8(weight + i);
    for (; i < size; i++) out[i] = x[i] * inverse * weight[i];
}

static LW_TARGET void swiglu(float* gate, const float* up, int size) {
    for (int i = 0; i < size; i += 8) {
        f8v decay = -at8(gate + i);
        exp8(decay);
        *(f8v*)(gate + i) = at8(gate + i) / (decay + 1.0f) * at8(up + i);
    }
}

// 8 N columns of the values, each row weighed by its score.
template <int N>
static inline LW_TARGET void mix(const float* scores, const float* values, int length, int size, float total,
                                 float* out) {
    f8v sums[N] = {};
    for (int s = 0; s < length; s++, values += size)
        for (int n = 0; n < N; n++) sums[n] += scores[s] * at8(values + 8 * n);
    for (int n = 0; n < N; n++) *(f8v*)(out + 8 * n) = sums[n] / total;
}

static LW_TARGET void attend(const float* q, const float* keys, const float* values, int length, int size, float scale,
                             float* scores, float* out) {
    float most = -INFINITY;
    for (int s = 0; s < length; s++) {
        scores[s] = dot(q, keys + (int64_t)s * size, size) * scale;
        most = scores[s] > most ? scores[s] : most;
    }
    for (int s = length; s % 8; s++) scores[s] = -INFINITY;
    f8v sum = {};
    for (int s = 0; s < length; s += 8) {
        f8v part = at8(scores + s) - most;
        exp8(part);
        *(f8v*)(scores + s) = part;
        for (int i = length - s; i < 8; i++) scores[s + i] = 0;
        sum += at8(scores + s);
    }
    const float total = add_lanes(sum);
    int e = 0;
    for (; e + 64 <= size; e += 64) mix<8>(scores, values + e, length, size, total, out + e);
    for (; e + 8 <= size; e += 8) mix<1>(scores, values + e, length, size, total, out + e);
    for (; e < size; e++) {
        float one = 0;
        for (int s = 0; s < length; s++) one += scores[s] * values[(int64_t)s * size + e];
        out[e] = one / total;
    }
}

template <int F>
static LW_TARGET void matmul_of(const lw_matrix& matrix, lw::Acts acts, int m, int first, int last, float* y,
                                int64_t ld, bool add) {
    const int64_t step = lw::tile_bytes(matrix);
    for (int t = first; t < last; t++) {
        const uint8_t* tile_at = matrix.tiles + t * step;
        const int from = t * lw::TILE, n = matrix.rows - from < lw::TILE ? matrix.rows - from : lw::TILE;
        for (int r = 0; r < m;) {
            alignas(64) float out[4 * lw::TILE];
            const int block = m - r >= 4 ? 4 : m - r >= 2 ? 2 : 1;
            if (block == 4) tile<F, 4>(tile_at, acts, r, out);
            else if (block == 2) tile<F, 2>(tile_at, acts, r, out);
            else tile<F, 1>(tile_at, acts, r, out);
            for (int b = 0; b < block; b++, r++) {
                float* to = y + r * ld + from;
                const float* found = out + b * lw::TILE;
                for (int i = 0; i < n; i++) {
                    const float value = matrix.bias ? found[i] + matrix.bias[from + i] : found[i];
                    to[i] = add ? to[i] + value : value;
                }
            }
        }
    }
}

static LW_TARGET void matmul(const lw_matrix& matrix, lw::Acts acts, int m, int first, int last, float* y, int64_t ld,
                             bool add) {
    switch (matrix.format) {
        case LW_Q8_CHANNEL: return matmul_of<LW_Q8_CHANNEL>(matrix, acts, m, first, last, y, ld, add);
        case LW_Q8_GROUP: return matmul_of<LW_Q8_GROUP>(matrix, acts, m, first, last, y, ld, add);
        case LW_Q4_PLAIN: return matmul_of<LW_Q4_PLAIN>(matrix, acts, m, first, last, y, ld, add);
        default: return matmul_of<LW_Q4_MIN>(matrix, acts, m, first, last, y, ld, add);
    }
}
