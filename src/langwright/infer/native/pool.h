// A few threads that stay: they spin for a moment between calls, then sleep in the kernel.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
inline int process_id() { return (int)getpid(); }
#else
inline int process_id() { return 0; }
#endif

namespace lw {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
public:
    explicit Pool(int count) : size(count), process(process_id()) {
        for (int t = 1; t < size; t++) std::thread([this, t] { serve(t); }).detach();
    }

    const int size, process;  // after a fork the threads are gone, and the pool is of no use

    // Runs work(argument, t) for every t below size, 0 in this thread; returns when all have finished.
    void run(void (*work)(void*, int), void* argument) {
        work_ = work, argument_ = argument;
        calls_.fetch_add(1, std::memory_order_release);
        calls_.notify_all();
        work(argument, 0);
        meet();
    }

    // No thread passes before all have come.
    void meet() {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            phase_.notify_all();
        } else {
            await_change(phase_, phase);
        }
    }

    void stop() {
        stopped_.store(true, std::memory_order_relaxed);
        calls_.fetch_add(1, std::memory_order_release);
        calls_.notify_all();
    }

private:
    static constexpr int PATIENCE = 3000;  // pauses, some 50 microseconds: more than a barrier, less than a scheduler's turn

    static void await_change(const std::atomic<uint32_t>& word, uint32_t old) {
        for (int i = 0; i < PATIENCE; i++) {
            if (word.load(std::memory_order_acquire) != old) return;
            relax();
        }
        while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
    }

    void serve(int t) {
        for (uint32_t seen = 0;; seen++) {
            await_change(calls_, seen);
            if (stopped_.load(std::memory_order_relaxed)) return;  // the pool itself is never freed
            work_(argument_, t);
            meet();
        }
    }

    alignas(64) std::atomic<uint32_t> calls_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<bool> stopped_{false};
    void (*work_)(void*, int) = nullptr;
    void* argument_ = nullptr;
};

}  // namespace lw
