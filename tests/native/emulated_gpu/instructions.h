// What native/cuda/kernels/instructions.h and the language of kernels say, for a CPU: the same
// functions with the same results, so that the device's code compiles as it stands. Copies that run
// beside a thread arrive at once here, and memory is ordered: what only a missing wait or fence
// could break stays unseen.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native/cuda/kernels/vector_types.h"
#include "native/kernels/scalar/half.h"
#include "tests/native/emulated_gpu/cta.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define threadIdx (awqe::emulated::thread_index)
#define blockIdx (awqe::emulated::block_index)
#define blockDim (awqe::emulated::block_size)
#define gridDim (awqe::emulated::grid_size)
#define AWQE_SHARED_KILOBYTES 228
#define AWQE_DYNAMIC_SHARED(type, name) \
    type* const name = static_cast<type*>(awqe::emulated::dynamic_shared())

struct uint2 {
    unsigned x, y;
};
struct float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}

inline void __syncthreads() { awqe::emulated::cta_barrier(); }
inline void __syncwarp() { awqe::emulated::warp_barrier(); }

// The value of lane `from(own lane)`.
template <class T, class From>
T shuffled(T value, const From& from) {
    static_assert(sizeof(T) == 4);
    awqe::emulated::Shown own = {};
    memcpy(own.word, &value, sizeof(value));
    const awqe::emulated::Shown* const all = awqe::emulated::exchange(own);
    memcpy(&value, all[from(int(awqe::emulated::lane()))].word, sizeof(value));
    return value;
}
template <class T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
    return shuffled(value, [=](int lane) { return lane / width * width + source % width; });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return shuffled(value, [=](int lane) { return lane ^ mask; });
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by, int width = 32) {
    return shuffled(value, [=](int lane) { return lane % width < by ? lane : lane - by; });
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by, int width = 32) {
    return shuffled(value, [=](int lane) { return lane % width + by < width ? lane + by : lane; });
}

namespace awqe_cuda {

inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float half_to_float(unsigned short bits) { return awqe::half_to_float(bits); }
inline unsigned short float_to_half(float value) { return awqe::float_to_half(value); }

inline int dot4(unsigned codes, int x, int sum) {
    for (int i = 0; i < 4; ++i)
        sum += int(codes >> (8 * i) & 0xff) * int((signed char)(unsigned(x) >> (8 * i)));
    return sum;
}

template <class T>
T loaded(const void* p) {
    T value;
    memcpy(&value, p, sizeof(value));
    return value;
}
inline uint4 load_codes(const void* p) { return loaded<uint4>(p); }
inline uint2 load_plane(const void* p) { return loaded<uint2>(p); }
inline unsigned short load_scale(const void* p) { return loaded<unsigned short>(p); }
inline int load_zero(const void* p) { return loaded<unsigned char>(p); }

#define AWQE_KERNELS_BEGIN_EARLY 1
inline void let_next_kernel_start() {}
inline void wait_for_kernel_before() {}

inline void copy_async16(void* to, const void* from) { memcpy(to, from, 16); }
inline void copy_async8(void* to, const void* from) { memcpy(to, from, 8); }
inline void copy_async4(void* to, const void* from) { memcpy(to, from, 4); }
inline void commit_copies() {}
template <int kLeft>
void wait_for_copies() {}

// mma.m16n8k32, by the layout of its operands: lane = row or column * 4 + quarter.
template <class A>
void multiply_tile(int (&d)[4], const unsigned (&a)[4], int b0, int b1, const int (&from)[4]) {
    awqe::emulated::Shown own = {};
    for (int i = 0; i < 4; ++i) own.word[i] = a[i];
    own.word[4] = unsigned(b0), own.word[5] = unsigned(b1);
    const int begin[4] = {from[0], from[1], from[2], from[3]};
    const awqe::emulated::Shown* const all = awqe::emulated::exchange(own);
    const int lane = int(awqe::emulated::lane());
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4;
        const int column = lane % 4 * 2 + i % 2;
        int sum = begin[i];
        for (int k = 0; k < 32; ++k) {
            const int quarter = k % 16 / 4;
            const unsigned weights = all[row * 4 + quarter].word[i / 2 + k / 16 * 2];
            const unsigned inputs = all[column * 4 + quarter].word[4 + k / 16];
            sum += int(A(weights >> (k % 4 * 8))) * int((signed char)(inputs >> (k % 4 * 8)));
        }
        d[i] = sum;
    }
}
inline void multiply_accumulate(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                int b0, int b1) {
    const unsigned a[4] = {a0, a1, a2, a3};
    multiply_tile<unsigned char>(d, a, b0, b1, d);
}
inline void multiply_signed(int (&d)[4], const unsigned (&a)[4], int b0, int b1,
                            const int (&from)[4]) {
    multiply_tile<signed char>(d, a, b0, b1, from);
}
inline void multiply_unsigned(int (&d)[4], const unsigned (&a)[4], int b0, int b1,
                              const int (&from)[4]) {
    multiply_tile<unsigned char>(d, a, b0, b1, from);
}

inline unsigned pack_halves(float low, float high) {
    return unsigned(float_to_half(low)) | unsigned(float_to_half(high)) << 16;
}
inline float power_of_two(float x) { return exp2f(x); }

// What lane `lane` gets of the matrix whose rows begin where `all` says.
inline unsigned two_of_matrix(const awqe::emulated::Shown* all, int matrix, int lane, bool turned) {
    unsigned short number[2];
    for (int i = 0; i < 2; ++i) {
        const int row = turned ? lane % 4 * 2 + i : lane / 4;
        const int column = turned ? lane / 4 : lane % 4 * 2 + i;
        const unsigned short* begin;
        memcpy(&begin, all[matrix * 8 + row].word, sizeof(begin));
        number[i] = begin[column];
    }
    return unsigned(number[0]) | unsigned(number[1]) << 16;
}
inline void load_four(unsigned (&r)[4], const unsigned short* row, bool turned) {
    awqe::emulated::Shown own = {};
    memcpy(own.word, &row, sizeof(row));
    const awqe::emulated::Shown* const all = awqe::emulated::exchange(own);
    const int lane = int(awqe::emulated::lane());
    for (int i = 0; i < 4; ++i) r[i] = two_of_matrix(all, i, lane, turned);
}
inline void load_matrices(unsigned (&r)[4], const unsigned short* row) { load_four(r, row, false); }
inline void load_matrices_turned(unsigned (&r)[4], const unsigned short* row) {
    load_four(r, row, true);
}

// mma.m16n8k16, by the layout of its operands; sums in ascending order, as no GPU says that it has.
inline void multiply_halves(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    awqe::emulated::Shown own = {};
    for (int i = 0; i < 4; ++i) own.word[i] = a[i];
    own.word[4] = b0, own.word[5] = b1;
    const awqe::emulated::Shown* const all = awqe::emulated::exchange(own);
    const int lane = int(awqe::emulated::lane());
    const auto half_at = [](unsigned word, int i) {
        return half_to_float((unsigned short)(word >> (i * 16)));
    };
    for (int i = 0; i < 4; ++i) {
        const int column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int quarter = k % 8 / 2;
            const unsigned left = all[lane / 4 * 4 + quarter].word[i / 2 + k / 8 * 2];
            const unsigned right = all[column * 4 + quarter].word[4 + k / 8];
            d[i] = fmaf(half_at(left, k % 2), half_at(right, k % 2), d[i]);
        }
    }
}

// A warp of a warpgroup does its 16 rows by itself: sums are exact, and arrive at once.
#define AWQE_HAS_WARPGROUPS 1
inline void show_copies_to_tensor_cores() {}
inline void before_warpgroup(int (&)[32], int (&)[32]) {}
template <bool kUnsigned, bool kFresh>
void multiply_warpgroup(int (&d)[32], const unsigned (&a)[4], const void* inputs, int step) {
    const int lane = int(awqe::emulated::lane());
    for (int j = 0; j < 8; ++j) {
        const int token = j * 8 + lane / 4;
        const int quarter = lane % 4;
        const auto word = [&](int piece) {
            const char* const row = static_cast<const char*>(inputs) + token * 128;
            return loaded<int>(row + (piece ^ (token & 7)) * 16 + quarter * 4);
        };
        int sums[4];
        for (int i = 0; i < 4; ++i) sums[i] = kFresh ? 0 : d[4 * j + i];
        if (kUnsigned)
            multiply_unsigned(sums, a, word(2 * step), word(2 * step + 1), sums);
        else
            multiply_signed(sums, a, word(2 * step), word(2 * step + 1), sums);
        for (int i = 0; i < 4; ++i) d[4 * j + i] = sums[i];
    }
}
inline void commit_warpgroup() {}
template <int kLeft>
void wait_for_warpgroup(int (&)[32], unsigned (&)[4][4]) {}
inline unsigned char* aligned_shared(unsigned char* p, size_t bytes) {
    return p + (bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes;
}

inline unsigned count_arrival(unsigned* counter) { return (*counter)++; }

// Of one of a CTA's barriers.
struct Meetings {
    int came;  // threads that came to the one that is not complete
    int complete;
};
inline Meetings& meetings_at(int barrier) {
    static Meetings all[16];
    return all[barrier];
}
inline void arrive_at_barrier(int barrier, int threads) {
    Meetings& meetings = meetings_at(barrier);
    if (++meetings.came < threads) return;
    meetings.came = 0;
    ++meetings.complete;
}
inline void wait_at_barrier(int barrier, int threads) {
    const int complete = meetings_at(barrier).complete;
    arrive_at_barrier(barrier, threads);
    while (meetings_at(barrier).complete == complete) awqe::emulated::let_others_run();
}

}  // namespace awqe_cuda
