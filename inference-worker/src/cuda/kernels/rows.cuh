// Kernels with one block per token: the embedding, and norms with what makes their result the input of a product.

struct Embed {
    const uint4* table;  // packed floats
    const Seat* seats;
    float* hidden;
    int width, chunks, kind;
};

extern "C" __global__ void embed(const __grid_constant__ Embed p) {
    pdl_launch();
    pdl_wait();
    const int row = p.seats[blockIdx.x].token;
    for (int j = threadIdx.x; j < p.width; j += blockDim.x) {
        const uint16_t bits = ((const uint16_t*)(p.table + dense_unit(row, j, p.chunks)))[j & 7];
        p.hidden[(size_t)blockIdx.x * p.width + j] =
            p.kind == BF16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
    }
}

struct Norm {
    const float* x;       // rows of `width`; or partial results of attention
    const float2* parts;  // of attention: largest score and sum of each split
    const float* weight;  // null: no norm
    const Seat* seats;    // null: row i is block i
    void* out;            // int8 or 16-bit rows of `stride` elements, zero behind `width`
    float* scales;        // of int8 rows: 127 / largest
    int* sums;            // of int8 rows
    float eps;
    int width, stride, kind;
    int splits, head_dim;  // attention only
};

// Weights of a norm that are read before the kernel before has ended; more would not fit into registers.
constexpr int EARLY = 8;

template <int MOST>
__device__ __forceinline__ void early(const Norm& p, float (&weight)[MOST]) {
    if constexpr (MOST <= EARLY) {
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            const int j = threadIdx.x + i * 1024;
            weight[i] = p.weight && j < p.width ? p.weight[j] : 0.f;
        }
    }
}

// Values of a row stay in registers: up to MOST of them per thread of a block of 1024.
template <int MOST, class Load>
__device__ __forceinline__ void finish_row(const Norm& p, const float (&weight)[MOST], Load load) {
    __shared__ float sums[32];
    __shared__ uint32_t peaks[32];
    __shared__ int totals[32];
    const int row = blockIdx.x;
    float v[MOST], squares = 0.f;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const int j = threadIdx.x + i * 1024;
        v[i] = j < p.width ? load(j) : 0.f;
        squares += v[i] * v[i];
    }
    if (p.weight) {
        squares = block_reduce(squares, 0.f, sums, [](float a, float b) { return a + b; });
        const float factor = __frcp_rn(__fsqrt_rn(squares / p.width + p.eps));
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            const int j = threadIdx.x + i * 1024;
            if (j < p.width) v[i] = (MOST <= EARLY ? weight[i] : p.weight[j]) * (v[i] * factor);
        }
    }
    if (p.kind != TERNARY) {
        uint16_t* out = (uint16_t*)p.out + (size_t)row * p.stride;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            const int j = threadIdx.x + i * 1024;
            if (j < p.stride)
                out[j] = p.kind == BF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v[i]))
                                        : __half_as_ushort(__float2half_rn(v[i]));
        }
        return;
    }
    // Bits of magnitudes order as the magnitudes do, with infinity and then NaN above all numbers.
    uint32_t peak = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++) peak = max(peak, __float_as_uint(v[i]) & 0x7fffffffu);
    peak = block_reduce(peak, 0u, peaks, [](uint32_t a, uint32_t b) { return max(a, b); });
    const bool finite = peak < 0x7f800000u;
    const float scale = finite ? __fdiv_rn(127.f, fmaxf(__uint_as_float(peak), 1e-5f)) : __uint_as_float(0x7fc00000u);
    int total = 0;
    int8_t* out = (int8_t*)p.out + (size_t)row * p.stride;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const int j = threadIdx.x + i * 1024;
        const int q = finite ? max(-128, min(127, __float2int_rn(__fmul_rn(v[i], scale)))) : 0;
        if (j < p.stride) out[j] = (int8_t)q;
        total += q;
    }
    total = block_reduce(total, 0, totals, [](int a, int b) { return a + b; });
    if (threadIdx.x == 0) {
        p.scales[row] = scale;
        p.sums[row] = total;
    }
}

template <int MOST>
__device__ __forceinline__ void norm_rows(const Norm& p) {
    float weight[MOST];
    early<MOST>(p, weight);
    pdl_launch();
    pdl_wait();
    const int row = p.seats ? p.seats[blockIdx.x].row : blockIdx.x;
    const float* x = p.x + (size_t)row * p.width;
    finish_row<MOST>(p, weight, [=](int j) { return x[j]; });
}

// The results of the splits of each head, put together: x is [token][head][split][head_dim].
template <int MOST>
__device__ __forceinline__ void norm_attention(const Norm& p) {
    float weight[MOST];
    early<MOST>(p, weight);
    // Seats are there before the first kernel of a pass.
    const int len = p.seats[blockIdx.x].position + 1;
    pdl_launch();
    pdl_wait();
    const int used = (len - 1) / split_length(len, p.splits) + 1;
    const int heads = p.width / p.head_dim;
    finish_row<MOST>(p, weight, [=](int j) {
        const int head = j / p.head_dim, e = j % p.head_dim;
        const size_t at = ((size_t)blockIdx.x * heads + head) * p.splits;
        if (used == 1) return p.x[at * p.head_dim + e] / p.parts[at].y;
        float most = -INFINITY;
        for (int s = 0; s < used; s++) most = fmaxf(most, p.parts[at + s].x);
        float sum = 0.f, total = 0.f;
        for (int s = 0; s < used; s++) {
            const float2 part = p.parts[at + s];
            const float share = exp2f(part.x - most);
            sum += p.x[(at + s) * p.head_dim + e] * share;
            total += part.y * share;
        }
        return sum / total;
    });
}

extern "C" __global__ void __launch_bounds__(1024) norm_rows_4(const __grid_constant__ Norm p) { norm_rows<4>(p); }
extern "C" __global__ void __launch_bounds__(1024) norm_rows_8(const __grid_constant__ Norm p) { norm_rows<8>(p); }
extern "C" __global__ void __launch_bounds__(1024) norm_rows_24(const __grid_constant__ Norm p) { norm_rows<24>(p); }
extern "C" __global__ void __launch_bounds__(1024) norm_attention_4(const __grid_constant__ Norm p) {
    norm_attention<4>(p);
}
extern "C" __global__ void __launch_bounds__(1024) norm_attention_8(const __grid_constant__ Norm p) {
    norm_attention<8>(p);
}

struct Read {
    const uint4* from;
    uint32_t* out;
    uint64_t units;
};

// Reads memory and does nothing else: what a pass could reach at most.
extern "C" __global__ void read_memory(const __grid_constant__ Read p) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    uint32_t all = 0;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i + 3 * step < p.units; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int u = 0; u < 4; u++) v[u] = __ldg(p.from + i + u * step);
#pragma unroll
        for (int u = 0; u < 4; u++) all += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    // Never so on the zeros that are read, but the compiler does not know.
    if (all == 0x9e3779b9u) p.out[0] = all;
}
