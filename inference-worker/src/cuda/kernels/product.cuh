// Products of weights and tokens on the tensor cores, and what becomes of them.
//
// Weights are the left operand, so a tile is 16 rows of the matrix by 8 tokens. Ternary weights stay 2-bit codes (weight
// + 1) until they are in registers; the sum of the input is subtracted at the end, so every ternary product is exact
// integer arithmetic, in whatever order it is summed.

enum Use { WRITE = 0, ADD = 1, GATE = 2, QKV = 3 };

struct Product {
    const uint4* weights;
    const float2* rule;  // ternary: (divisor, factor) of the rows g and g + 8 of each group, else null
    const char* x;       // rows of `chunks` × 128 bytes
    const float* scales;
    const int* sums;
    float* out;          // rows of `width`
    int groups, chunks, tokens, use, width;
    int silu;            // GATE: 1, else squared ReLU
    int heads;           // QKV: query heads; keys and values follow
    const Seat* seats;
    const float2* angles;  // [position][head_dim / 2] cosine and sine
    float* kv;             // int8 caches: [token][key, value][kv heads × head_dim], for store_kv; else null
    CacheShape shape;
};

// The results of one token for the rows g and g + 8 of a group.
__device__ __forceinline__ void use_pair(const Product& p, int group, int g, int token, float low, float high) {
    switch (p.use) {
        case WRITE: {
            const int row = group * 16 + g;
            float* out = p.out + (size_t)token * p.width;
            if (row < p.width) out[row] = low;
            if (row + 8 < p.width) out[row + 8] = high;
            return;
        }
        case ADD: {
            float* out = p.out + (size_t)token * p.width + group * 16 + g;
            out[0] += low;
            out[8] += high;
            return;
        }
        case GATE: {
            // A comparison, not fmaxf, which would turn NaN into 0.
            const float gate = p.silu ? low / (1.f + expf(-low)) : (low < 0.f ? 0.f : low * low);
            p.out[(size_t)token * p.width + group * 8 + g] = gate * high;
            return;
        }
        default: {
            const int head_dim = p.shape.head_dim, per_head = head_dim / 16;
            const int head = group / per_head, j = group % per_head;
            const Seat seat = p.seats[token];
            const bool value = head >= p.heads + (int)p.shape.kv_heads;
            int a = j * 8 + g, b = a + head_dim / 2;
            if (value) {
                a = j * 16 + g;
                b = a + 8;
            } else {
                const float2 turn = p.angles[(size_t)seat.position * (head_dim / 2) + a];
                const float x = low;
                low = x * turn.x - high * turn.y;
                high = high * turn.x + x * turn.y;
            }
            if (head < p.heads) {
                float* out = p.out + (size_t)token * p.width + head * head_dim;
                out[a] = low;
                out[b] = high;
                return;
            }
            const int kv_head = head - p.heads - (value ? p.shape.kv_heads : 0);
            if (p.kv) {
                const int wide = p.shape.kv_heads * head_dim;
                float* out = p.kv + ((size_t)token * 2 + value) * wide + kv_head * head_dim;
                out[a] = low;
                out[b] = high;
            } else {
                __half* out = (__half*)cache_rows(seat, p.shape, value, kv_head) + (size_t)seat.position * head_dim;
                out[a] = __float2half_rn(low);
                out[b] = __float2half_rn(high);
            }
        }
    }
}

__device__ __forceinline__ void mma(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <int KIND>
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
    if constexpr (KIND == BF16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Read once: not worth a place in the first-level cache.
__device__ __forceinline__ uint4 stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// A lane's share of one chunk of one group.
template <int KIND>
struct Weights {
    static constexpr int UNITS = KIND == TERNARY ? 1 : 4;
    using Sum = typename std::conditional_t<KIND == TERNARY, int, float>;
    uint4 unit[UNITS];

    __device__ __forceinline__ void load(const uint4* chunk, int lane) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) unit[u] = stream(chunk + u * 32 + lane);
    }
    // Adds the products with 32 bytes of input, four steps of the tensor cores.
    __device__ __forceinline__ void multiply(Sum (&c)[4], const uint4& first, const uint4& second) const {
        const uint32_t x[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
        if constexpr (KIND == TERNARY) {
            const uint32_t w[4] = {unit[0].x, unit[0].y, unit[0].z, unit[0].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t low = w[j >> 1] >> ((j & 1) * 4), high = w[2 + (j >> 1)] >> ((j & 1) * 4);
                const uint32_t mask = 0x03030303u;
                mma(c, low & mask, high & mask, (low >> 2) & mask, (high >> 2) & mask, x[2 * j], x[2 * j + 1]);
            }
        } else {
            const uint32_t low[8] = {unit[0].x, unit[0].y, unit[0].z, unit[0].w,
                                     unit[1].x, unit[1].y, unit[1].z, unit[1].w};
            const uint32_t high[8] = {unit[2].x, unit[2].y, unit[2].z, unit[2].w,
                                      unit[3].x, unit[3].y, unit[3].z, unit[3].w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma<KIND>(c, low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1], x[2 * j], x[2 * j + 1]);
        }
    }
};

// `(product - sum) / (scale · divisor) · factor`, rounded as the host rounds it.
__device__ __forceinline__ float value_of(const Product& p, int group, int upper, int token, int product) {
    const float2 rule = p.rule[group * 2 + upper];
    return __fmul_rn(__fdiv_rn((float)(product - p.sums[token]), __fmul_rn(p.scales[token], rule.x)), rule.y);
}
__device__ __forceinline__ float value_of(const Product&, int, int, int, float product) { return product; }

// Few tokens, as in decoding: bound by the weights, which are read once. A block has GROUPS groups of rows; its warps, at
// most WARPS, share the columns. Weights do not depend on the kernel before, so the first ones are asked for before it has ended.
template <int KIND, int TILES, int GROUPS, int WARPS>
__device__ __forceinline__ void narrow(const Product& p) {
    using W = Weights<KIND>;
    using Sum = typename W::Sum;
    constexpr int AHEAD = (KIND == TERNARY ? 4 : 2) / GROUPS;
    __shared__ Sum partial[WARPS][GROUPS * TILES * 4][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int g = lane >> 2, t = lane & 3;
    const uint4* base[GROUPS];
#pragma unroll
    for (int r = 0; r < GROUPS; r++) {
        const int group = min((int)blockIdx.x * GROUPS + r, p.groups - 1);
        base[r] = p.weights + (size_t)group * p.chunks * (W::UNITS * 32);
    }
    W ahead[AHEAD][GROUPS];
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
        const int chunk = warp + a * warps;
        if (chunk < p.chunks)
#pragma unroll
            for (int r = 0; r < GROUPS; r++) ahead[a][r].load(base[r] + (size_t)chunk * (W::UNITS * 32), lane);
    }
    pdl_launch();
    pdl_wait();
    Sum sum[GROUPS][TILES][4] = {};
    for (int first = warp; first < p.chunks; first += warps * AHEAD) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int chunk = first + a * warps;
            if (chunk >= p.chunks) break;
            W now[GROUPS];
#pragma unroll
            for (int r = 0; r < GROUPS; r++) now[r] = ahead[a][r];
            const int next = chunk + warps * AHEAD;
            if (next < p.chunks)
#pragma unroll
                for (int r = 0; r < GROUPS; r++) ahead[a][r].load(base[r] + (size_t)next * (W::UNITS * 32), lane);
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const int token = n * 8 + g;
                uint4 one = make_uint4(0, 0, 0, 0), two = one;
                if (token < p.tokens) {
                    const uint4* x = (const uint4*)(p.x + ((size_t)token * p.chunks + chunk) * 128 + t * 32);
                    one = x[0];
                    two = x[1];
                }
#pragma unroll
                for (int r = 0; r < GROUPS; r++) now[r].multiply(sum[r][n], one, two);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < GROUPS; r++)
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) partial[warp][(r * TILES + n) * 4 + i][lane] = sum[r][n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < GROUPS * TILES * 64; i += blockDim.x) {
        const int of = i & 31, odd = (i >> 5) & 1, tile = i >> 6;
        const int group = blockIdx.x * GROUPS + tile / TILES, token = (tile % TILES) * 8 + (of & 3) * 2 + odd;
        if (group >= p.groups || token >= p.tokens) continue;
        Sum low = 0, high = 0;
        for (int w = 0; w < warps; w++) {
            low += partial[w][tile * 4 + odd][of];
            high += partial[w][tile * 4 + odd + 2][of];
        }
        use_pair(p, group, of >> 2, token, value_of(p, group, 0, token, low), value_of(p, group, 1, token, high));
    }
}

// Many tokens, as in prompts: a block has 128 rows and 64 tokens. Each warp streams the weights of its own 16 rows; the
// input goes through shared memory, three chunks ahead.
constexpr int WIDE_TOKENS = 64, WIDE_STAGES = 4, WIDE_STRIDE = 144;  // 16 bytes of padding: no two lanes share a bank

template <int KIND>
__device__ __forceinline__ void wide(const Product& p) {
    using W = Weights<KIND>;
    using Sum = typename W::Sum;
    constexpr int TILES = WIDE_TOKENS / 8;
    __shared__ __align__(16) char stage[WIDE_STAGES][WIDE_TOKENS * WIDE_STRIDE];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int group = blockIdx.x * 8 + warp, first = blockIdx.y * WIDE_TOKENS;
    const uint4* weights = p.weights + (size_t)min(group, p.groups - 1) * p.chunks * (W::UNITS * 32);
    pdl_launch();
    pdl_wait();
    auto fetch = [&](int chunk) {
        if (chunk < p.chunks) {
#pragma unroll
            for (int i = threadIdx.x; i < WIDE_TOKENS * 8; i += 256) {
                const int token = i >> 3, unit = i & 7;
                const uint32_t to =
                    (uint32_t)__cvta_generic_to_shared(&stage[chunk % WIDE_STAGES][token * WIDE_STRIDE + unit * 16]);
                const bool inside = first + token < p.tokens;
                const char* from = p.x + ((size_t)(inside ? first + token : 0) * p.chunks + chunk) * 128 + unit * 16;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                             "r"(inside ? 16 : 0));
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    W next;
    next.load(weights, lane);
    for (int s = 0; s < WIDE_STAGES - 1; s++) fetch(s);
    Sum sum[TILES][4] = {};
    for (int chunk = 0; chunk < p.chunks; chunk++) {
        const W now = next;
        if (chunk + 1 < p.chunks) next.load(weights + (size_t)(chunk + 1) * (W::UNITS * 32), lane);
        asm volatile("cp.async.wait_group %0;" ::"n"(WIDE_STAGES - 2));
        // This chunk is there for all warps, and all have left the one whose place is filled now.
        __syncthreads();
        fetch(chunk + WIDE_STAGES - 1);
        const char* x = stage[chunk % WIDE_STAGES] + g * WIDE_STRIDE + t * 32;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const uint4* units = (const uint4*)(x + n * 8 * WIDE_STRIDE);
            now.multiply(sum[n], units[0], units[1]);
        }
    }
    if (group >= p.groups) return;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const int token = first + n * 8 + t * 2 + odd;
            if (token < p.tokens)
                use_pair(p, group, g, token, value_of(p, group, 0, token, sum[n][odd]),
                         value_of(p, group, 1, token, sum[n][odd + 2]));
        }
}

#define NARROW(NAME, KIND, TILES, GROUPS, WARPS)                                                    \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) NAME(const __grid_constant__ Product p) { \
        narrow<KIND, TILES, GROUPS, WARPS>(p);                                                      \
    }
#define PRODUCTS(NAME, KIND)                                                                        \
    NARROW(NAME##_8, KIND, 1, 1, 16)                                                                \
    NARROW(NAME##_16, KIND, 2, 1, 16)                                                               \
    NARROW(NAME##_32, KIND, 4, 1, 8)                                                                \
    NARROW(NAME##_32_tall, KIND, 4, 2, 8)                                                           \
    extern "C" __global__ void __launch_bounds__(256) NAME##_wide(const __grid_constant__ Product p) { \
        wide<KIND>(p);                                                                              \
    }
PRODUCTS(ternary, TERNARY)
PRODUCTS(f16, F16)
PRODUCTS(bf16, BF16)
