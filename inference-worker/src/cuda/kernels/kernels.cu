// All kernels of the GPU backend, one module.
#include <type_traits>
#include "common.cuh"
#include "repack.cuh"
#include "rows.cuh"
#include "product.cuh"
#include "attention.cuh"
