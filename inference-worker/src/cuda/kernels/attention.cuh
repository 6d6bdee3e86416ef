// Attention over the cache: a block takes one token, some heads that share keys and values, and a stretch of positions.

struct Attention {
    const float* query;  // [token][heads × head_dim], turned
    const Seat* seats;
    float* out;          // [token][head][split][head_dim], not divided by the sum yet
    float2* parts;       // [token][head][split]: largest score (base 2) and sum
    CacheShape shape;
    int heads, splits;
    float scale;         // of the scores, times log2 e
};

constexpr int ATTENTION_WARPS = 4;

// 16 numbers of a row of a cache.
struct Sixteen {
    uint4 a, b;
    float factor;
};

template <bool INT8>
__device__ __forceinline__ void load16(Sixteen& v, const char* rows, const float* factors, int position, int head_dim,
                                       int at) {
    if constexpr (INT8) {
        v.a = *(const uint4*)(rows + (size_t)position * head_dim + at);
        v.factor = factors[position];
    } else {
        const uint4* p = (const uint4*)(rows + ((size_t)position * head_dim + at) * 2);
        v.a = p[0];
        v.b = p[1];
    }
}

template <bool INT8>
__device__ __forceinline__ void widen(const Sixteen& v, float (&out)[16]) {
    if constexpr (INT8) {
        const uint32_t w[4] = {v.a.x, v.a.y, v.a.z, v.a.w};
#pragma unroll
        for (int i = 0; i < 16; i++) out[i] = (float)(int8_t)(w[i / 4] >> (i % 4 * 8)) * v.factor;
    } else {
        const uint32_t w[8] = {v.a.x, v.a.y, v.a.z, v.a.w, v.b.x, v.b.y, v.b.z, v.b.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float2 pair = __half22float2(*(const __half2*)&w[i]);
            out[2 * i] = pair.x;
            out[2 * i + 1] = pair.y;
        }
    }
}

// LANES lanes share a position, 16 numbers each; HEADS query heads are computed from one load of keys and values.
template <int LANES, int HEADS, bool INT8>
__device__ __forceinline__ void attend(const Attention& p) {
    constexpr int TEAMS = 32 / LANES, ALL = TEAMS * ATTENTION_WARPS;
    __shared__ float sums[HEADS][ALL][LANES * 16];
    __shared__ float2 states[HEADS][ALL];
    __shared__ float shares[HEADS][ALL], peaks[HEADS];
    const int token = blockIdx.x, split = blockIdx.z;
    // Seats are there before the first kernel of a pass.
    const Seat seat = p.seats[token];
    pdl_launch();
    pdl_wait();
    const int len = seat.position + 1, length = split_length(len, p.splits);
    const int begin = split * length, end = min(len, begin + length);
    if (begin >= len) return;
    const int head_dim = p.shape.head_dim;
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / (p.heads / (int)p.shape.kv_heads);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int team = warp * TEAMS + lane / LANES, at = lane % LANES * 16;
    const bool inside = at < head_dim;
    const char* keys = cache_rows(seat, p.shape, 0, kv_head);
    const char* values = cache_rows(seat, p.shape, 1, kv_head);
    const float *key_factors = nullptr, *value_factors = nullptr;
    if constexpr (INT8) {
        key_factors = cache_factors(seat, p.shape, 0, kv_head);
        value_factors = cache_factors(seat, p.shape, 1, kv_head);
    }
    float query[HEADS][16], sum[HEADS][16], most[HEADS], total[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        most[h] = -INFINITY;
        total[h] = 0.f;
        const float* q = p.query + ((size_t)token * p.heads + first_head + h) * head_dim + at;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            query[h][i] = inside ? q[i] * p.scale : 0.f;
            sum[h][i] = 0.f;
        }
    }
    // All lanes of a warp take every turn, because they exchange scores; those without a position have no say.
    Sixteen next_key = {}, next_value = {};
    int position = begin + team;
    if (position < end && inside) {
        load16<INT8>(next_key, keys, key_factors, position, head_dim, at);
        load16<INT8>(next_value, values, value_factors, position, head_dim, at);
    }
    for (int turn = begin; turn < end; turn += ALL) {
        float key[16], value[16];
        widen<INT8>(next_key, key);
        widen<INT8>(next_value, value);
        const bool there = position < end;
        position += ALL;
        if (position < end && inside) {
            load16<INT8>(next_key, keys, key_factors, position, head_dim, at);
            load16<INT8>(next_value, values, value_factors, position, head_dim, at);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float score = 0.f;
#pragma unroll
            for (int i = 0; i < 16; i++) score += query[h][i] * key[i];
#pragma unroll
            for (int s = LANES / 2; s > 0; s >>= 1) score += __shfl_xor_sync(0xffffffffu, score, s);
            if (there) {
                const float larger = fmaxf(most[h], score);
                const float keep = exp2f(most[h] - larger), share = exp2f(score - larger);
                most[h] = larger;
                total[h] = total[h] * keep + share;
#pragma unroll
                for (int i = 0; i < 16; i++) sum[h][i] = sum[h][i] * keep + share * value[i];
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (at == 0) states[h][team] = make_float2(most[h], total[h]);
#pragma unroll
        for (int i = 0; i < 16; i++) sums[h][team][at + i] = sum[h][i];
    }
    __syncthreads();
    // What each team's sums count for, once; a team without a position has the largest score of -inf and counts nothing,
    // NaN stays NaN.
    for (int i = threadIdx.x; i < HEADS * ALL; i += blockDim.x) {
        const int h = i / ALL, s = i % ALL;
        float largest = -INFINITY;
#pragma unroll
        for (int other = 0; other < ALL; other++) largest = fmaxf(largest, states[h][other].x);
        shares[h][s] = states[h][s].y == 0.f ? 0.f : exp2f(states[h][s].x - largest);
        if (s == 0) peaks[h] = largest;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * head_dim; i += blockDim.x) {
        const int h = i / head_dim, e = i % head_dim;
        float all = 0.f, result = 0.f;
#pragma unroll
        for (int s = 0; s < ALL; s++) {
            all += states[h][s].y * shares[h][s];
            result += sums[h][s][e] * shares[h][s];
        }
        const size_t to = ((size_t)token * p.heads + first_head + h) * p.splits + split;
        p.out[to * head_dim + e] = result;
        if (e == 0) p.parts[to] = make_float2(peaks[h], all);
    }
}

#define ATTEND(LANES, HEADS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128) attend_f16_##LANES##_##HEADS(                               \
        const __grid_constant__ Attention p) {                                                                     \
        attend<LANES, HEADS, false>(p);                                                                            \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) attend_int8_##LANES##_##HEADS(                              \
        const __grid_constant__ Attention p) {                                                                     \
        attend<LANES, HEADS, true>(p);                                                                             \
    }
ATTEND(4, 1) ATTEND(4, 2) ATTEND(4, 4)
ATTEND(8, 1) ATTEND(8, 2) ATTEND(8, 4)
ATTEND(16, 1) ATTEND(16, 2) ATTEND(16, 4)

struct StoreKv {
    const float* kv;  // [token][key, value][kv heads × head_dim]
    const Seat* seats;
    CacheShape shape;
};

// int8 caches: each row of a head gets the factor largest / 127. A row that is not finite gets the factor NaN.
extern "C" __global__ void store_kv(const __grid_constant__ StoreKv p) {
    pdl_launch();
    pdl_wait();
    const int token = blockIdx.x, head = blockIdx.y, which = blockIdx.z, lane = threadIdx.x;
    const Seat seat = p.seats[token];
    const int head_dim = p.shape.head_dim;
    const float* x = p.kv + (((size_t)token * 2 + which) * p.shape.kv_heads + head) * head_dim;
    uint32_t peak = 0;
    for (int i = lane; i < head_dim; i += 32) peak = max(peak, __float_as_uint(x[i]) & 0x7fffffffu);
    peak = warp_reduce(peak, [](uint32_t a, uint32_t b) { return max(a, b); });
    const bool finite = peak < 0x7f800000u;
    const float largest = __uint_as_float(peak), scale = finite && largest > 1e-30f ? 127.f / largest : 0.f;
    int8_t* out = (int8_t*)cache_rows(seat, p.shape, which, head) + (size_t)seat.position * head_dim;
    for (int i = lane; i < head_dim; i += 32) out[i] = finite ? (int8_t)__float2int_rn(x[i] * scale) : (int8_t)1;
    if (lane == 0)
        cache_factors(seat, p.shape, which, head)[seat.position] =
            finite ? largest / 127.f : __uint_as_float(0x7fc00000u);
}
