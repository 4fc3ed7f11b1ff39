// An object that belongs to one process. Threads and locks do not survive a fork: the child has a
// copy of their words and nobody who runs. Whoever asks in the child gets a new object; the old one
// is left as it lies, since nothing can be done with it, not even freeing. Owns the one object.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace awqe {

template <class T>
class PerProcess {
  public:
    PerProcess() = default;
    ~PerProcess() { delete find(); }
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;

    // This process's object; the first call makes it with make(), a std::unique_ptr<T>, and throws
    // what that throws. Safe from any thread.
    template <class Make>
    T& get(const Make& make) {
        const int64_t self = getpid();
        int64_t owner = owner_.load(std::memory_order_acquire);
        while (owner != self) {
            if (owner == -self) {  // another thread is making it
                std::this_thread::yield();
                owner = owner_.load(std::memory_order_acquire);
            } else if (owner_.compare_exchange_weak(owner, -self, std::memory_order_acquire)) {
                create(self, make);
                break;
            }
        }
        return *value_;
    }

    // This process's object, or NULL if it has none.
    T* find() const {
        return owner_.load(std::memory_order_acquire) == getpid() ? value_ : nullptr;
    }

  private:
    template <class Make>
    void create(int64_t self, const Make& make) {
        try {
            value_ = make().release();
        } catch (...) {
            owner_.store(0, std::memory_order_release);
            throw;
        }
        owner_.store(self, std::memory_order_release);
    }

    // The process whose object `value_` is; negative while that process makes it; 0 for none yet.
    std::atomic<int64_t> owner_{0};
    T* value_ = nullptr;
};

}  // namespace awqe
