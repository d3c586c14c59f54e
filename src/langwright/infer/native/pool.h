// A few threads that stay. Work is handed out in units, and a call waits for units, never for a thread that has none:
// where the processor is busy with other things, whoever runs does them all.
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

    // work(unit, t) for every unit, fewer than 65,536, on some thread t below size; returns when all are done.
    template <class Work>
    void each(int units, const Work& work) {
        if (size == 1 || units == 1) {
            for (int unit = 0; unit < units; unit++) work(unit, 0);
            return;
        }
        run_ = [](const void* f, int unit, int t) { (*(const Work*)f)(unit, t); };
        work_ = &work;
        done_.store(0, std::memory_order_relaxed);
        const uint32_t number = phase_.load(std::memory_order_relaxed) + 1;
        claims_.store((uint64_t)number << 32 | (uint64_t)units << 16, std::memory_order_release);
        phase_.store(number, std::memory_order_release);
        phase_.notify_all();
        while (claim(0)) {}
        for (int i = 0; done_.load(std::memory_order_acquire) != units; i++)
            if (i < PATIENCE) relax();
            else std::this_thread::yield();
    }

    void stop() {
        stopped_.store(true, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    }

private:
    static constexpr int PATIENCE = 3000;  // pauses, some 50 microseconds

    // Does one unit if any is left. Holding it keeps the phase from ending, and so what it reads from changing.
    bool claim(int t) {
        uint64_t seen = claims_.load(std::memory_order_acquire);
        do {
            if ((seen & 0xffff) >= (seen >> 16 & 0xffff)) return false;
        } while (!claims_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire));
        run_(work_, (int)(seen & 0xffff), t);
        done_.fetch_add(1, std::memory_order_acq_rel);
        return true;
    }

    void serve(int t) {
        for (;;) {
            const uint32_t phase = phase_.load(std::memory_order_acquire);
            if (stopped_.load(std::memory_order_relaxed)) return;  // the pool itself is never freed
            while (claim(t)) {}
            for (int i = 0; i < PATIENCE && phase_.load(std::memory_order_acquire) == phase; i++) relax();
            phase_.wait(phase, std::memory_order_acquire);  // at once, if it has changed
        }
    }

    alignas(64) std::atomic<uint64_t> claims_{0};  // phase, units, next unit: 32, 16 and 16 bits
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<bool> stopped_{false};
    void (*run_)(const void*, int, int) = nullptr;
    const void* work_ = nullptr;
};

}  // namespace lw
