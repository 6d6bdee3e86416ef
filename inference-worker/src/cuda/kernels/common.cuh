// What all kernels share. No header of the toolkit but cuda_fp16 and cuda_bf16.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// How a matrix is stored, and so what its input must be: int8 for ternary weights, else the weights' own type.
enum Kind { TERNARY = 0, F16 = 1, BF16 = 2 };

// One token of a pass; the same struct is in params.rs.
struct Seat {
    uint64_t cache;     // the sequence's keys and values
    uint32_t token;     // id
    uint32_t position;  // in the sequence
    uint32_t capacity;  // positions that the cache has room for
    uint32_t row;       // of the head: which hidden row's logits are wanted, for seats below their number
};

// Shape of the caches; the same struct is in params.rs. A cache is [layer][key, value][kv head][capacity][head_dim] in f16,
// or in int8 followed by one f32 factor per row, in the same order.
struct CacheShape {
    uint32_t layer, layers, kv_heads, head_dim, bytes;  // `bytes` of a number: 2 or 1
};

// Programmatic launch (Hopper and later): the next kernel of the stream may be set up while this one runs, and may read
// constants (weights); `pdl_wait` returns once everything before it has been written.
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ char* cache_rows(const Seat& seat, const CacheShape& shape, int which, int head) {
    const size_t plane = (size_t)(shape.layer * 2 + which) * shape.kv_heads + head;
    return (char*)seat.cache + plane * seat.capacity * shape.head_dim * shape.bytes;
}
// Factors of the int8 rows of one head.
__device__ __forceinline__ float* cache_factors(const Seat& seat, const CacheShape& shape, int which, int head) {
    const size_t planes = (size_t)shape.layers * 2 * shape.kv_heads;
    const size_t plane = (size_t)(shape.layer * 2 + which) * shape.kv_heads + head;
    return (float*)((char*)seat.cache + planes * seat.capacity * shape.head_dim) + plane * seat.capacity;
}

// Positions that one block of attention reads, where `splits` blocks share a sequence of `len`.
__device__ __forceinline__ int split_length(int len, int splits) {
    const int share = (len + splits - 1) / splits;
    return max(32, (share + 15) / 16 * 16);
}

template <class T, class F>
__device__ __forceinline__ T warp_reduce(T v, F f) {
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) v = f(v, __shfl_xor_sync(0xffffffffu, v, s));
    return v;
}
// Over a block of whole warps; every thread gets the result. `scratch` holds 32 values and may be used again after the
// next barrier of the block.
template <class T, class F>
__device__ __forceinline__ T block_reduce(T v, T zero, T* scratch, F f) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    v = warp_reduce(v, f);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = lane < (blockDim.x >> 5) ? scratch[lane] : zero;
    return warp_reduce(v, f);
}

// Index of the 16-byte unit of a packed matrix of floats that holds (row, column); see repack.cuh.
__device__ __forceinline__ size_t dense_unit(int row, int column, int chunks) {
    const int r = row & 15, inside = column & 63;
    const int part = (r >> 3) * 2 + ((inside & 15) >> 3);
    return ((size_t)(row >> 4) * chunks + (column >> 6)) * 128 + part * 32 + (r & 7) * 4 + (inside >> 4);
}
