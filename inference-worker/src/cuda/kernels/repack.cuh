// From the host's layouts to the order in which the tensor cores take weights.
//
// Rows come in groups of 16; a group is a sequence of chunks of 128 columns (ternary, 512 bytes) or 64 (floats, 2 KiB).
// A lane of a warp holds the rows g = lane / 4 and g + 8, and of each chunk the 32 bytes of input t = lane % 4 that belong
// to it: so one 16-byte load of a warp is one contiguous stretch of memory. Which row of the matrix is which row of the
// packed one is free; pairs that are needed together are put at g and g + 8:
//   PLAIN    packed row = row
//   ROTARY   element i of a head and the one that it turns with, i + head_dim / 2
//   LOWER    the rows of this matrix at g alone (gate), UPPER at g + 8 alone (up), of a common packed matrix
enum Order { PLAIN = 0, ROTARY = 1, LOWER = 2, UPPER = 3 };

struct Repack {
    const void* from;
    uint4* to;       // first group of this matrix
    int rows, columns;
    int groups, chunks;
    int order, head_dim;
    int stride;      // floats: elements between rows of `from`
    int panel;       // ternary: rows of a panel of `from`
};

// Row of the matrix that goes to (group, r); -1: none, the row is written by another call.
__device__ __forceinline__ int source_row(const Repack& p, int group, int r) {
    const bool upper = r >= 8;
    switch (p.order) {
        case ROTARY: {
            const int per_head = p.head_dim / 16, head = group / per_head, j = group % per_head;
            return head * p.head_dim + j * 8 + (r & 7) + (upper ? p.head_dim / 2 : 0);
        }
        case LOWER: return upper ? -1 : group * 8 + r;
        case UPPER: return upper ? group * 8 + r - 8 : -1;
        default: return group * 16 + r;
    }
}

// The host's ternary layout: panels of rows, each a sequence of blocks of 16 columns; word r of a block is row r, with the code
// (weight + 1) of column 4 i + b in the bits 2 i of byte b.
extern "C" __global__ void repack_ternary(const __grid_constant__ Repack p) {
    const size_t words = (size_t)p.groups * p.chunks * 128;
    const uint32_t* from = (const uint32_t*)p.from;
    const int blocks = (p.columns + 15) / 16;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (size_t)gridDim.x * blockDim.x) {
        const int part = i & 3, lane = (i >> 2) & 31, g = lane >> 2, t = lane & 3;
        const int chunk = (i >> 7) % p.chunks, group = (i >> 7) / p.chunks;
        const int row = source_row(p, group, g + (part >> 1) * 8);
        if (row < 0) continue;
        const int block = chunk * 8 + t * 2 + (part & 1);
        const bool inside = row < p.rows && block < blocks;
        // Code 1 is the weight 0.
        ((uint32_t*)p.to)[i] =
            inside ? from[((size_t)(row / p.panel) * blocks + block) * p.panel + row % p.panel] : 0x55555555u;
    }
}

// Rows of 16-bit floats, `stride` apart (a multiple of 8), zero behind their columns.
extern "C" __global__ void repack_dense(const __grid_constant__ Repack p) {
    const size_t units = (size_t)p.groups * p.chunks * 128;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < units; i += (size_t)gridDim.x * blockDim.x) {
        const int lane = i & 31, part = (i >> 5) & 3, g = lane >> 2, t = lane & 3;
        const int chunk = (i >> 7) % p.chunks, group = (i >> 7) / p.chunks;
        const int row = source_row(p, group, g + (part >> 1) * 8);
        if (row < 0) continue;
        const int column = chunk * 64 + t * 16 + (part & 1) * 8;
        const bool inside = row < p.rows && column < p.stride;
        p.to[i] = inside ? *(const uint4*)((const uint16_t*)p.from + (size_t)row * p.stride + column)
                         : make_uint4(0, 0, 0, 0);
    }
}
