//! Why a GPU is not used, or what went wrong on it.

use cudarc::driver::DriverError;

/// A GPU that cannot serve a model.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The feature was type-checked, not built.
    #[error(
        "this program was built with `--features cuda` but without nvcc, so it has no kernels; build it with a CUDA toolkit (docs/gpu.md)"
    )]
    NoKernels,
    /// libcuda.so.1 cannot be opened.
    #[error(
        "there is no NVIDIA driver: libcuda.so.1 was not found; ask for a GPU (resources.limits: nvidia.com/gpu) on a node with the NVIDIA container toolkit, or serve with --device cpu"
    )]
    NoDriver,
    /// The driver shows no device.
    #[error(
        "the NVIDIA driver shows no GPU number {ordinal}; ask for one (resources.limits: nvidia.com/gpu), or serve with --device cpu"
    )]
    NoDevice {
        /// Number of the GPU that was asked for.
        ordinal: usize,
        /// The driver's answer.
        #[source]
        source: DriverError,
    },
    /// Kernels of a newer CUDA than the driver knows.
    #[error(
        "the NVIDIA driver knows CUDA {}.{} but the kernels were built with CUDA {toolkit}; update the driver of the node, or build with an older toolkit",
        driver / 1000, driver % 1000 / 10
    )]
    OldDriver {
        /// CUDA version of the driver, as 1000 × major + 10 × minor.
        driver: i32,
        /// CUDA version of the kernels.
        toolkit: &'static str,
    },
    /// No kernel runs on this GPU.
    #[error(
        "the kernels need compute capability 8.0 or later (Ampere) but {name} has {major}.{minor}; serve with --device cpu"
    )]
    OldDevice {
        /// The GPU.
        name: String,
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
    /// A model that the kernels do not compute.
    #[error("the GPU kernels do not run this model: {rule}; serve with --device cpu, or convert the model")]
    Model {
        /// What must hold and what was found.
        rule: String,
    },
    /// The weights do not fit.
    #[error(
        "the model needs {needed} bytes on the GPU and {free} are free; use a GPU with more memory, or one that nobody shares"
    )]
    Memory {
        /// Bytes of weights and buffers.
        needed: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// The driver refused something.
    #[error("CUDA failed while {doing}")]
    Driver {
        /// What was done.
        doing: &'static str,
        /// The driver's answer.
        #[source]
        source: DriverError,
    },
    /// The GPU computes something else than the CPU.
    #[error(
        "the GPU computes something else than the CPU: {finding}; serve with --device cpu and report GPU and driver"
    )]
    SelfTest {
        /// The first check that failed.
        finding: String,
    },
}

/// Names what was being done when the driver refused.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|source| CudaError::Driver { doing, source })
    }
}
