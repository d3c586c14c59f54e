// Tokens through the whole decoder in one call: each phase is shared out among the threads.
#include "core.h"
#include "half.h"
#include "pool.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <vector>

namespace lw {
namespace {

const Kernels* kernels = nullptr;
Pool* pool = nullptr;
std::mutex one_call;  // the threads serve one call at a time, whatever decoder it is for

// Room for the activations of ROWS tokens, for the widest matrix.
struct Room {
    std::vector<int8_t> q;
    std::vector<uint8_t> u;
    std::vector<float> scale, sum;

    Acts acts(int columns) {
        const size_t count = (size_t)ROWS * columns, groups = count / GROUP;
        if (q.size() < count) q.resize(count), u.resize(count), scale.resize(groups), sum.resize(groups);
        return {q.data(), u.data(), scale.data(), sum.data(), columns};
    }
};

struct Output {
    const lw_matrix& matrix;
    float* y;
};

int parts() { return 2 * pool->size; }  // of a matrix: a thread that is held up leaves one to the others

// Has the beginning of a tile on its way while other things are done.
void fetch(const lw_matrix& matrix, int tile) {
    const uint8_t* from = matrix.tiles + tile * tile_bytes(matrix);
    for (int line = 0; line < 2048; line += 64) __builtin_prefetch(from + line, 0, 2);
}

// m rows of activations times matrices of as many columns, each to its own y (m, rows); with ``add`` onto what is there.
void multiply(std::initializer_list<Output> outputs, Acts acts, int m, bool add = false) {
    int tiles = 0;
    for (const Output& each : outputs) tiles += tiles_of(each.matrix);
    const int units = std::min(parts(), tiles);
    pool->each(units, [&](int unit, int) {
        int from = (int64_t)tiles * unit / units, to = (int64_t)tiles * (unit + 1) / units;
        for (const Output& each : outputs) {
            const int here = tiles_of(each.matrix), rows = each.matrix.rows;
            if (from < here && to > 0)
                kernels->matmul(each.matrix, acts, m, std::max(from, 0), std::min(to, here), each.y, rows, add);
            from -= here, to -= here;
        }
    });
}

struct Call {
    const lw_model& model;
    const lw_cache& cache;
    int count;
    const int32_t *tokens, *slots, *positions;
    int n_wanted;
    const int32_t* wanted;
    float* logits;

    std::vector<float> x, normed, q, k, v, mixed, gate, up;
    std::vector<std::vector<float>> scores, turned;  // of each thread
    Room room;

    void allocate() {
        const lw_model& m = model;
        const size_t n = std::min(count, ROWS);
        int longest = 0;
        for (int i = 0; i < count; i++) longest = std::max(longest, positions[i] + 1);
        x.resize(n * m.d_model), mixed.resize(n * m.n_heads * m.d_head), q.resize(mixed.size()), normed.resize(x.size());
        k.resize(n * m.n_kv_heads * m.d_head), v.resize(k.size()), gate.resize(n * m.d_mlp), up.resize(gate.size());
        scores.assign(pool->size, std::vector<float>(longest + 8));
        turned.assign(pool->size, std::vector<float>(m.d_head));
        room.acts(std::max({m.d_model, m.n_heads * m.d_head, m.d_mlp}));
    }

    // work(i) for i below n: by this thread where that is sooner done than said.
    template <class Work>
    void each_row(int m, int n, const Work& work) {
        if (m == 1)
            for (int i = 0; i < n; i++) work(i);
        else
            pool->each(n, [&](int i, int) { work(i); });
    }

    // Rows of ``from`` (m, columns), normalised where there is a weight, as activations.
    Acts prepare(const float* from, int columns, int m, const float* norm) {
        const Acts acts = room.acts(columns);
        each_row(m, m, [&](int r) {
            const float* row = from + (int64_t)r * columns;
            float* out = normed.data() + (int64_t)r * model.d_model;
            if (norm) kernels->rmsnorm(row, norm, columns, model.eps, out);
            kernels->quantise(norm ? out : row, acts, r);
        });
        return acts;
    }

    void turn(const float* head, int position, const float* norm, float* out) {
        const int half = model.rotated / 2;
        if (norm) kernels->rmsnorm(head, norm, model.d_head, model.eps, out);
        else std::memcpy(out, head, sizeof(float) * model.d_head);
        const float *cos = model.cos + (int64_t)position * half, *sin = model.sin + (int64_t)position * half;
        for (int i = 0; i < half; i++) {
            const float a = out[i], b = out[i + half];
            out[i] = a * cos[i] - b * sin[i];
            out[i + half] = b * cos[i] + a * sin[i];
        }
    }

    int64_t cached(int layer, int slot, int head) const {
        const int64_t heads = ((int64_t)layer * cache.slots + slot) * model.n_kv_heads + head;
        return heads * cache.capacity * model.d_head;
    }

    void layer(int number, int first, int m) {
        const lw_layer& own = model.layers[number];
        const int H = model.n_heads, K = model.n_kv_heads, E = model.d_head, D = model.d_model, F = model.d_mlp;
        Acts acts = prepare(x.data(), D, m, own.attn_norm);
        multiply({{own.q, q.data()}, {own.k, k.data()}, {own.v, v.data()}}, acts, m);
        each_row(m, m * K, [&](int unit) {
            const int r = unit / K, head = unit % K, position = positions[first + r];
            const int64_t to = cached(number, slots[first + r], head) + (int64_t)position * E;
            turn(k.data() + (int64_t)unit * E, position, own.k_norm, cache.keys + to);
            std::memcpy(cache.values + to, v.data() + (int64_t)unit * E, sizeof(float) * E);
        });
        pool->each(m * H, [&](int unit, int t) {
            const int r = unit / H, head = unit % H, position = positions[first + r];
            const int64_t from = cached(number, slots[first + r], head / (H / K));
            turn(q.data() + (int64_t)unit * E, position, own.q_norm, turned[t].data());
            kernels->attend(turned[t].data(), cache.keys + from, cache.values + from, position + 1, E, model.scale,
                            scores[t].data(), mixed.data() + (int64_t)unit * E);
        });
        acts = prepare(mixed.data(), H * E, m, nullptr);
        multiply({{own.o, x.data()}}, acts, m, true);
        acts = prepare(x.data(), D, m, own.mlp_norm);
        const int tiles = tiles_of(own.gate), units = std::min(parts(), tiles);
        pool->each(units, [&](int unit, int) {
            const int from = tiles * unit / units, to = tiles * (unit + 1) / units;
            fetch(own.up, from);
            kernels->matmul(own.gate, acts, m, from, to, gate.data(), F, false);
            kernels->matmul(own.up, acts, m, from, to, up.data(), F, false);
            for (int r = 0; r < m; r++) {
                const int64_t at = (int64_t)r * F + from * TILE;
                kernels->swiglu(gate.data() + at, up.data() + at, std::min(to * TILE, F) - from * TILE);
            }
        });
        acts = prepare(gate.data(), F, m, nullptr);
        multiply({{own.down, x.data()}}, acts, m, true);
    }

    void run() {
        const int D = model.d_model;
        for (int first = 0, done = 0; first < count; first += ROWS) {
            const int m = std::min(ROWS, count - first);
            each_row(m, m, [&](int r) { lw_embed(&model.embed, 1, tokens + first + r, x.data() + (int64_t)r * D); });
            for (int number = 0; number < model.n_layers; number++) layer(number, first, m);
            int asked = 0;  // what is asked for moves to the front; rows ascend, so none is overwritten before it moved
            for (; done + asked < n_wanted && wanted[done + asked] < first + m; asked++)
                std::memmove(x.data() + (int64_t)asked * D, x.data() + (int64_t)(wanted[done + asked] - first) * D, 4 * D);
            if (asked == 0) continue;
            const Acts acts = prepare(x.data(), D, asked, model.final_norm);
            multiply({{model.head, logits + (int64_t)done * model.head.rows}}, acts, asked);
            done += asked;
        }
    }
};

const Kernels* choose(const char* wanted) {
    const Kernels* best = nullptr;
    for (const Kernels* each : {&portable, &avx2, &avx512})
        if (each->runs_here() && (!wanted || !std::strcmp(wanted, each->name))) best = each;
    return best;
}

// What a call needs, for the holder of `one_call`.
void ready() {
    if (!kernels) kernels = choose(nullptr);
    if (!pool || pool->process != process_id()) pool = new Pool(pool ? pool->size : 1);
}

float weight(const lw_matrix& m, int row, int column) {
    const bool q8 = m.format == LW_Q8_CHANNEL || m.format == LW_Q8_GROUP;
    const uint8_t* tile = m.tiles + row / TILE * tile_bytes(m);
    const uint8_t* at = tile + column / GROUP * group_bytes(m.format);
    const int n = row % TILE, step = column % GROUP / 4, k = column % 4;
    const uint8_t* codes = at + (m.format == LW_Q8_CHANNEL ? 0 : m.format == LW_Q4_MIN ? 128 : 64);
    if (m.format == LW_Q8_CHANNEL) {
        const float* scales = (const float*)(tile + m.columns / GROUP * group_bytes(m.format));
        return (float)(int8_t)codes[step * 128 + n * 4 + k] * scales[n];
    }
    const float scale = half(at + 2 * n);
    if (q8) return (float)(int8_t)codes[step * 128 + n * 4 + k] * scale;
    const int code = codes[step % 4 * 128 + n * 4 + k] >> (step / 4 * 4) & 15;
    return m.format == LW_Q4_PLAIN ? (float)(code - 8) * scale : (float)code * scale + half(at + 64 + 2 * n);
}

}  // namespace
}  // namespace lw

using namespace lw;

const char* lw_kernels(const char* wanted) {
    const Kernels* found = choose(wanted);
    if (!found) return nullptr;
    std::lock_guard<std::mutex> hold(one_call);
    kernels = found;
    return found->name;
}

int lw_threads(int wanted) {
    std::lock_guard<std::mutex> hold(one_call);
    if (!pool || pool->size != wanted || pool->process != process_id()) {
        if (pool && pool->process == process_id()) pool->stop();
        pool = new Pool(std::max(1, wanted));
    }
    return pool->size;
}

void lw_embed(const lw_matrix* matrix, int32_t count, const int32_t* ids, float* out) {
    for (int i = 0; i < count; i++)
        for (int column = 0; column < matrix->columns; column++)
            *out++ = weight(*matrix, ids[i], column);
}

int lw_matmul(const lw_matrix* matrix, int32_t rows, const float* x, float* y) {
    std::lock_guard<std::mutex> hold(one_call);
    ready();
    Room room;
    const int K = matrix->columns;
    for (int first = 0; first < rows; first += ROWS, x += (int64_t)ROWS * K, y += (int64_t)ROWS * matrix->rows) {
        const int m = std::min(ROWS, rows - first);
        const Acts acts = room.acts(K);
        pool->each(m, [&](int r, int) { kernels->quantise(x + (int64_t)r * K, acts, r); });
        multiply({{*matrix, y}}, acts, m);
    }
    return 0;
}

int lw_forward(const lw_model* model, const lw_cache* cache, int32_t count, const int32_t* tokens, const int32_t* slots,
               const int32_t* positions, int32_t n_wanted, const int32_t* wanted, float* logits) {
    for (int i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= model->embed.rows || slots[i] < 0 || slots[i] >= cache->slots ||
            positions[i] < 0 || positions[i] >= cache->capacity)
            return -1;
    for (int i = 0; i < n_wanted; i++)
        if (wanted[i] < 0 || wanted[i] >= count || (i && wanted[i] <= wanted[i - 1])) return -1;
    std::lock_guard<std::mutex> hold(one_call);
    ready();
    Call call{*model, *cache, count, tokens, slots, positions, n_wanted, wanted, logits};
    call.allocate();
    call.run();
    return 0;
}
