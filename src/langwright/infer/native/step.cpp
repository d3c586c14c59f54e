// Tokens through the whole decoder in one call: each phase is shared out among the threads, which meet after it.
#include "core.h"
#include "half.h"
#include "pool.h"

#include <algorithm>
#include <cstring>
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

struct Call {
    const lw_model& model;
    const lw_cache& cache;
    int count;
    const int32_t *tokens, *slots, *positions;
    int n_wanted;
    const int32_t* wanted;
    float* logits;

    int threads = pool->size, width = 0;
    std::vector<float> x, normed, q, k, v, mixed, gate, up;
    std::vector<std::vector<float>> scores;  // one room a thread, and one more
    std::vector<std::vector<float>> turned;
    std::vector<Room> rooms;  // 0: of all threads together; t + 1: of thread t alone

    void allocate() {
        const lw_model& m = model;
        const size_t n = std::min(count, ROWS);
        width = std::max({m.d_model, m.n_heads * m.d_head, m.d_mlp});
        int longest = 0;
        for (int i = 0; i < count; i++) longest = std::max(longest, positions[i] + 1);
        x.resize(n * m.d_model), mixed.resize(n * m.n_heads * m.d_head), q.resize(n * m.n_heads * m.d_head);
        k.resize(n * m.n_kv_heads * m.d_head), v.resize(k.size()), gate.resize(n * m.d_mlp), up.resize(gate.size());
        normed.resize((size_t)(threads + 1) * ROWS * m.d_model);
        scores.assign(threads, std::vector<float>(longest + 16));
        turned.assign(threads, std::vector<float>(m.d_head));
        rooms.resize(threads + 1);
        for (Room& room : rooms) room.acts(width);
    }

    static void start(void* call, int t) { ((Call*)call)->work(t); }

    // Rows of ``from`` (m, columns), normalised where there is a weight, as activations. One row every thread makes for
    // itself, which is sooner done than waiting for another; more are shared out.
    Acts prepare(const float* from, int columns, int m, const float* norm, int t) {
        const bool alone = m == 1;
        const int own = alone ? t + 1 : 0;
        const Acts acts = rooms[own].acts(columns);
        for (int r = alone ? 0 : t; r < m; r += alone ? 1 : threads) {
            const float* row = from + (int64_t)r * columns;
            if (norm) {
                float* out = normed.data() + ((int64_t)own * ROWS + r) * model.d_model;
                kernels->rmsnorm(row, norm, columns, model.eps, out);
                row = out;
            }
            kernels->quantise(row, acts, r);
        }
        if (!alone) pool->meet();
        return acts;
    }

    void multiply(const lw_matrix& w, Acts acts, int m, int t, float* y, int64_t ld, bool add = false) {
        const int tiles = tiles_of(w);
        kernels->matmul(w, acts, m, tiles * t / threads, tiles * (t + 1) / threads, y, ld, add);
    }

    // Has the first of this thread's part of a matrix on its way while other things are done.
    void fetch(const lw_matrix& w, int t) {
        const uint8_t* from = w.tiles + tiles_of(w) * t / threads * tile_bytes(w);
        for (int line = 0; line < 2048; line += 64) __builtin_prefetch(from + line, 0, 2);
    }

    void turn(float* head, int position, const float* norm, float* out) {
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

    void layer(int number, int first, int m, int t) {
        const lw_layer& own = model.layers[number];
        const int H = model.n_heads, K = model.n_kv_heads, E = model.d_head, D = model.d_model, F = model.d_mlp;
        Acts acts = prepare(x.data(), D, m, own.attn_norm, t);
        fetch(own.k, t), fetch(own.v, t);
        multiply(own.q, acts, m, t, q.data(), H * E);
        multiply(own.k, acts, m, t, k.data(), K * E);
        multiply(own.v, acts, m, t, v.data(), K * E);
        fetch(own.o, t);
        pool->meet();
        for (int unit = t; unit < m * K; unit += threads) {
            const int r = unit / K, head = unit % K, position = positions[first + r];
            const int64_t to = cached(number, slots[first + r], head) + (int64_t)position * E;
            turn(k.data() + (int64_t)unit * E, position, own.k_norm, cache.keys + to);
            std::memcpy(cache.values + to, v.data() + (int64_t)unit * E, sizeof(float) * E);
        }
        pool->meet();
        for (int unit = t; unit < m * H; unit += threads) {
            const int r = unit / H, head = unit % H, position = positions[first + r];
            const int64_t from = cached(number, slots[first + r], head / (H / K));
            turn(q.data() + (int64_t)unit * E, position, own.q_norm, turned[t].data());
            kernels->attend(turned[t].data(), cache.keys + from, cache.values + from, position + 1, E, model.scale,
                            scores[t].data(), mixed.data() + (int64_t)unit * E);
        }
        pool->meet();
        acts = prepare(mixed.data(), H * E, m, nullptr, t);
        multiply(own.o, acts, m, t, x.data(), D, true);
        fetch(own.gate, t), fetch(own.up, t);
        pool->meet();
        acts = prepare(x.data(), D, m, own.mlp_norm, t);
        multiply(own.gate, acts, m, t, gate.data(), F);
        multiply(own.up, acts, m, t, up.data(), F);
        fetch(own.down, t);
        const int tiles = tiles_of(own.gate), from = tiles * t / threads * TILE;
        const int to = std::min(tiles * (t + 1) / threads * TILE, F);
        for (int r = 0; r < m; r++)
            kernels->swiglu(gate.data() + (int64_t)r * F + from, up.data() + (int64_t)r * F + from, to - from);
        pool->meet();
        acts = prepare(gate.data(), F, m, nullptr, t);
        multiply(own.down, acts, m, t, x.data(), D, true);
        fetch(number + 1 < model.n_layers ? model.layers[number + 1].q : model.head, t);
        pool->meet();
    }

    void work(int t) {
        const int D = model.d_model;
        for (int first = 0, done = 0; first < count; first += ROWS) {
            const int m = std::min(ROWS, count - first);
            for (int r = t; r < m; r += threads)
                lw_embed(&model.embed, 1, tokens + first + r, x.data() + (int64_t)r * D);
            pool->meet();
            for (int number = 0; number < model.n_layers; number++) layer(number, first, m, t);
            int asked = 0;
            while (done + asked < n_wanted && wanted[done + asked] < first + m) asked++;
            if (asked == 0) continue;
            if (t == 0)  // what is asked for moves to the front: rows ascend, so none is overwritten before it moved
                for (int i = 0; i < asked; i++)
                    std::memmove(x.data() + (int64_t)i * D, x.data() + (int64_t)(wanted[done + i] - first) * D, 4 * D);
            pool->meet();
            const Acts acts = prepare(x.data(), D, asked, model.final_norm, t);
            const int64_t V = model.head.rows;
            multiply(model.head, acts, asked, t, logits + done * V, V);
            pool->meet();
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

struct Product {
    const lw_matrix& matrix;
    int rows;
    const float* x;
    float* y;
    Room room;

    static void start(void* product, int t) { ((Product*)product)->work(t); }

    void work(int t) {
        const int tiles = tiles_of(matrix), K = matrix.columns;
        for (int first = 0; first < rows; first += ROWS) {
            const int m = std::min(ROWS, rows - first);
            const Acts acts = room.acts(K);
            for (int r = t; r < m; r += pool->size) kernels->quantise(x + (int64_t)(first + r) * K, acts, r);
            pool->meet();
            kernels->matmul(matrix, acts, m, tiles * t / pool->size, tiles * (t + 1) / pool->size,
                            y + (int64_t)first * matrix.rows, matrix.rows, false);
            pool->meet();
        }
    }
};

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
    Product product{*matrix, rows, x, y, {}};
    product.room.acts(matrix->columns);
    pool->run(Product::start, &product);
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
    pool->run(Call::start, &call);
    return 0;
}
