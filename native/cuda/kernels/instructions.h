// The instructions that device code needs and C++ has no word for, one function each. Owns every
// line of assembly; knows no format and no formula. tests/native/emulated_gpu/instructions.h has
// the same functions for a CPU.
#pragma once

namespace awqe_cuda {

// Of a multiprocessor.
#if __CUDA_ARCH__ >= 900
#define AWQE_SHARED_KILOBYTES 228
#else
#define AWQE_SHARED_KILOBYTES 164
#endif

// Shared memory whose size the launch says.
#define AWQE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]

__device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(value));
    return bits;
}

// codes: four unsigned bytes; x: four signed ones.
__device__ __forceinline__ int dot4(unsigned codes, int x, int sum) {
    int result;
    asm("dp4a.u32.s32 %0,%1,%2,%3;" : "=r"(result) : "r"(codes), "r"(x), "r"(sum));
    return result;
}

// Weights are read once: past the first cache, which activations need. Volatile, like the two small
// loads below: the compiler otherwise moves side loads down to their use, and every unit of work
// then waits for memory a second time.
__device__ __forceinline__ uint4 load_codes(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 load_plane(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ unsigned short load_scale(const void* p) {
    unsigned short v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ int load_zero(const void* p) {
    int v;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// Programmatic launch (sm_90): a kernel may begin while the one before it ends, and reads weights
// in that time. Whatever an earlier kernel writes is read, and anything is written, only behind
// wait_for_kernel_before(). Every kernel calls both, or completion would not be transitive.
#if __CUDA_ARCH__ >= 900
#define AWQE_KERNELS_BEGIN_EARLY 1
#endif
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Copies to shared memory that run beside the thread. A thread's copies since the last commit are a
// group; wait_for_copies<n>() returns when all but its last n groups have arrived.
__device__ __forceinline__ void copy_async16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                     unsigned(__cvta_generic_to_shared(to))),
                 "l"(from));
}
__device__ __forceinline__ void copy_async8(void* to, const void* from) {
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
        "l"(from));
}
__device__ __forceinline__ void copy_async4(void* to, const void* from) {
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
        "l"(from));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// d = a b + from on the int8 tensor cores: 16 outputs x 8 tokens x 32 inputs.
__device__ __forceinline__ void multiply_accumulate(int (&d)[4], unsigned a0, unsigned a1,
                                                    unsigned a2, unsigned a3, int b0, int b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with signed weights, and sums that begin at `from`.
__device__ __forceinline__ void multiply_signed(int (&d)[4], const unsigned (&a)[4], int b0, int b1,
                                                const int (&from)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from[0]), "r"(from[1]),
          "r"(from[2]), "r"(from[3]));
}
__device__ __forceinline__ void multiply_unsigned(int (&d)[4], const unsigned (&a)[4], int b0,
                                                  int b1, const int (&from)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from[0]), "r"(from[1]),
          "r"(from[2]), "r"(from[3]));
}

// Two floats as halves, the first in the low bits.
__device__ __forceinline__ unsigned pack_halves(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 2^x to some two units in the last place; 0 of minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// Four matrices of 8 x 8 halves from shared memory: lane i says where row i % 8 of matrix i / 8
// begins. Every lane gets numbers 2 (i % 4) and the next of row i / 4, of each matrix; turned,
// those of column i / 4.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const unsigned short* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}
__device__ __forceinline__ void load_matrices_turned(unsigned (&r)[4], const unsigned short* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

// d += a b on the fp16 tensor cores: 16 rows x 8 columns x 16 numbers, sums in floats.
__device__ __forceinline__ void multiply_halves(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Warpgroups (sm_90a): four neighbouring warps, of which each has 16 of 64 rows of weights. Sums
// are those of the functions above, eight tokens after the other, d[4 j ... 4 j + 3] of tokens
// 8 j ... 8 j + 7. Work begins at once and runs beside the warps: between before_warpgroup() and
// wait_for_warpgroup() nobody touches its registers.
#define AWQE_HAS_WARPGROUPS 1

// What copies and stores have put into shared memory, tensor cores may read behind the next
// barrier.
__device__ __forceinline__ void show_copies_to_tensor_cores() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void before_warpgroup(int (&d)[32], int (&e)[32]) {
    asm volatile("wgmma.fence.sync.aligned;"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                   "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
                   "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
                   "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
                   "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
                   "+r"(d[30]), "+r"(d[31]), "+r"(e[0]), "+r"(e[1]), "+r"(e[2]), "+r"(e[3]),
                   "+r"(e[4]), "+r"(e[5]), "+r"(e[6]), "+r"(e[7]), "+r"(e[8]), "+r"(e[9]),
                   "+r"(e[10]), "+r"(e[11]), "+r"(e[12]), "+r"(e[13]), "+r"(e[14]), "+r"(e[15]),
                   "+r"(e[16]), "+r"(e[17]), "+r"(e[18]), "+r"(e[19]), "+r"(e[20]), "+r"(e[21]),
                   "+r"(e[22]), "+r"(e[23]), "+r"(e[24]), "+r"(e[25]), "+r"(e[26]), "+r"(e[27]),
                   "+r"(e[28]), "+r"(e[29]), "+r"(e[30]), "+r"(e[31])
                 :
                 : "memory");
}
// d += a b for 64 tokens and step `step` of 32 inputs; kFresh: d = a b. While tensor cores are at
// other sums nothing but such a product may begin new ones: the compiler would wait for all that
// runs. inputs: 64 rows of 128 bytes in shared memory at a multiple of 1024, 16-byte pieces of row
// t exchanged by t % 8.
#define AWQE_MULTIPLY_WARPGROUP(type)                                                             \
    asm volatile(                                                                                 \
        "{ .reg .pred p; setp.ne.b32 p, %37, 0; "                                                 \
        "wgmma.mma_async.sync.aligned.m64n64k32.s32." type                                        \
        ".s8 "                                                                                    \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"     \
        "%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p; }"                      \
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),     \
          "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), \
          "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),           \
          "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]),           \
          "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens), "n"(int(!kFresh)))

template <bool kUnsigned, bool kFresh>
__device__ __forceinline__ void multiply_warpgroup(int (&d)[32], const unsigned (&a)[4],
                                                   const void* inputs, int step) {
    // Address / 16; 8 rows are 1024 bytes; pieces exchanged over 128 bytes.
    const unsigned long long address = __cvta_generic_to_shared(inputs) + step * 32;
    const unsigned long long tokens =
        ((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
    if constexpr (kUnsigned)
        AWQE_MULTIPLY_WARPGROUP("u8");
    else
        AWQE_MULTIPLY_WARPGROUP("s8");
}
__device__ __forceinline__ void commit_warpgroup() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when all but the last kLeft commits are done; d and a are theirs.
template <int kLeft>
__device__ __forceinline__ void wait_for_warpgroup(int (&d)[32], unsigned (&a)[4][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %48;"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                   "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
                   "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
                   "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
                   "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
                   "+r"(d[30]), "+r"(d[31]), "+r"(a[0][0]), "+r"(a[0][1]), "+r"(a[0][2]),
                   "+r"(a[0][3]), "+r"(a[1][0]), "+r"(a[1][1]), "+r"(a[1][2]), "+r"(a[1][3]),
                   "+r"(a[2][0]), "+r"(a[2][1]), "+r"(a[2][2]), "+r"(a[2][3]), "+r"(a[3][0]),
                   "+r"(a[3][1]), "+r"(a[3][2]), "+r"(a[3][3])
                 : "n"(kLeft)
                 : "memory");
}
#endif

__device__ __forceinline__ unsigned char* aligned_shared(unsigned char* p, unsigned bytes) {
    const unsigned address = unsigned(__cvta_generic_to_shared(p));
    return p + (bytes - address % bytes) % bytes;
}

// Adds one and returns what was there. Releases what the CTA wrote, and acquires what those wrote
// that counted before it.
__device__ __forceinline__ unsigned count_arrival(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(counter)
                 : "memory");
    return before;
}

// `threads` threads of a CTA, whole warps, meet at one of its barriers 1 ... 15 (0 is
// __syncthreads()'s): some only arrive and go on, the others wait for all and see what they have
// written.
__device__ __forceinline__ void arrive_at_barrier(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void wait_at_barrier(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace awqe_cuda
