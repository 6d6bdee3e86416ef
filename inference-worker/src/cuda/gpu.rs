//! One GPU: context, stream, kernels, memory, launches.

use super::CudaError;
use super::error::Doing;
use super::params::{Address, Kind};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result, sys};
use cudarc::nvrtc::Ptx;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

/// The compiled kernels; empty where the build only checked types.
const KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));
/// CUDA version of the compiler, `major.minor`.
const TOOLKIT: &str = env!("CUDA_KERNELS_TOOLKIT");
/// Programmatic launches came with Hopper.
const HOPPER: i32 = 9;
/// The kernels' instructions came with Ampere.
const AMPERE: i32 = 8;

/// One GPU with its kernels. All work goes to one stream, in order.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) kernels: Kernels,
    /// Compute capability, `(9, 0)` for Hopper.
    pub(super) capability: (i32, i32),
    pub(super) name: String,
    /// Kernels may be set up while the one before runs.
    overlaps: bool,
    /// The last thing in the stream was a kernel of ours, which says when the next may be set up.
    chained: Cell<bool>,
}

/// The kernels of the module by what they do.
pub(super) struct Kernels {
    pub(super) repack_ternary: CudaFunction,
    pub(super) repack_dense: CudaFunction,
    pub(super) embed: CudaFunction,
    pub(super) store_kv: CudaFunction,
    pub(super) read_memory: CudaFunction,
    norm_rows: [CudaFunction; 3],
    norm_attention: [CudaFunction; 2],
    /// By kind; for up to 8, 16 and 32 tokens, for 32 and many rows, and for more tokens.
    products: [[CudaFunction; 5]; 3],
    /// f16 and int8; by lanes of a position (4, 8, 16); by heads that are computed together (1, 2, 4).
    attend: [[[CudaFunction; 3]; 3]; 2],
}

/// Threads of a norm; each holds some values of the row.
pub(super) const NORM_THREADS: u32 = 1024;
/// Most values of a row that a norm takes, and that one after attention takes.
pub(super) const WIDEST_ROW: usize = 24 * NORM_THREADS as usize;
/// See [`WIDEST_ROW`].
pub(super) const WIDEST_HEADS: usize = 8 * NORM_THREADS as usize;

impl Gpu {
    /// Opens GPU number `ordinal` and loads the kernels.
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
        if KERNELS.is_empty() {
            return Err(CudaError::NoKernels);
        }
        // SAFETY: opens the driver's library, whose initialisers are the driver's business, and looks at nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let mut driver = 0;
        // SAFETY: the library is there; the function writes one integer, and works without initialisation.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().doing("asking for the driver's version")?;
        let major: i32 = TOOLKIT.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if driver / 1000 < major {
            return Err(CudaError::OldDriver { driver, toolkit: TOOLKIT });
        }
        let context = CudaContext::new(ordinal).map_err(|source| CudaError::NoDevice { ordinal, source })?;
        let name = context.name().doing("asking for the GPU's name")?;
        let capability = context.compute_capability().doing("asking for the GPU's capability")?;
        if capability.0 < AMPERE {
            return Err(CudaError::OldDevice { name, major: capability.0, minor: capability.1 });
        }
        // SAFETY: the events would order streams; there is one stream here, and the host waits for it before it reads.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().doing("making a stream")?;
        let kernels = Kernels::load(&context).doing("loading the kernels")?;
        let overlaps = capability.0 >= HOPPER;
        Ok(Self { context, stream, kernels, capability, name, overlaps, chained: Cell::new(false) })
    }

    /// Bytes of device memory that are free.
    pub(super) fn free_bytes(&self) -> Result<usize, CudaError> {
        Ok(self.context.mem_get_info().doing("asking for free memory")?.0)
    }

    /// Memory of `count` numbers of `size` bytes, all zero.
    pub(super) fn zeros(&self, bytes: usize) -> Result<CudaSlice<u8>, CudaError> {
        self.stream.alloc_zeros(bytes.max(1)).doing("taking device memory")
    }

    /// A copy in device memory, padded with zeros to 16 bytes.
    pub(super) fn copy<T>(&self, data: &[T]) -> Result<CudaSlice<u8>, CudaError>
    where
        T: Copy,
    {
        let buffer = self.zeros(size_of_val(data).next_multiple_of(16))?;
        self.write(self.address(&buffer), data)?;
        Ok(buffer)
    }

    /// Where a buffer lies.
    pub(super) fn address(&self, buffer: &CudaSlice<u8>) -> Address {
        let (address, _in_order) = buffer.device_ptr(&self.stream);
        address
    }

    /// Copies to device memory that was allocated with at least as many bytes. The data may be changed when this returns,
    /// unless it is page-locked: then not before the stream has got there.
    pub(super) fn write<T: Copy>(&self, to: Address, data: &[T]) -> Result<(), CudaError> {
        self.chained.set(false);
        self.context.bind_to_thread().doing("taking the context")?;
        // SAFETY: `to` is a live buffer of at least these bytes (the callers' sizes come from the same shapes), and plain
        // data may be copied byte by byte.
        unsafe { result::memcpy_htod_async(to, data, self.stream.cu_stream()) }.doing("copying to the GPU")
    }

    /// Copies from device memory into page-locked memory; the data is there after [`Gpu::wait`].
    pub(super) fn read(&self, from: Address, to: &mut [f32]) -> Result<(), CudaError> {
        self.chained.set(false);
        // SAFETY: `from` is a live buffer of at least these bytes; the caller waits before it looks at `to`.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.doing("copying from the GPU")
    }

    /// Page-locked host memory, for copies at full speed.
    pub(super) fn pinned<T>(&self, count: usize) -> Result<PinnedHostSlice<T>, CudaError>
    where
        T: cudarc::driver::DeviceRepr,
    {
        // SAFETY: the memory is not initialised; it holds plain numbers and is written before it is read.
        unsafe { self.context.alloc_pinned_with_flags(count, 0) }.doing("taking page-locked memory")
    }

    /// Waits until the stream has done everything.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("waiting for the GPU")
    }

    /// Bytes per second that a kernel reads from device memory: the best of `rounds`.
    pub(super) fn read_bandwidth(&self, rounds: usize) -> Result<f64, CudaError> {
        const BYTES: usize = 4 << 30;
        let bytes = BYTES.min(self.free_bytes()? / 2);
        let (data, out) = (self.zeros(bytes)?, self.zeros(16)?);
        let params =
            super::params::Read { from: self.address(&data), out: self.address(&out), units: (bytes / 16) as u64 };
        let mut best = 0.0_f64;
        for _ in 0..=rounds {
            self.wait()?;
            let start = std::time::Instant::now();
            self.launch(&self.kernels.read_memory, [132 * 16, 1, 1], 256, &params)?;
            self.wait()?;
            best = best.max(bytes as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// Puts a kernel into the stream. All kernels take one struct by value.
    pub(super) fn launch<P: Copy>(
        &self,
        kernel: &CudaFunction,
        grid: [u32; 3],
        threads: u32,
        params: &P,
    ) -> Result<(), CudaError> {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.overlaps && self.chained.get()),
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: `P` is the struct that this kernel takes (params.rs beside kernels/*.cuh), and is copied by the call; the
        // addresses in it are buffers of the shapes that the callers computed, and live until the stream has done with them:
        // they are dropped through the stream, or after waiting for it.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, kernel.cu_function(), arguments.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .doing("starting a kernel")?;
        self.chained.set(true);
        Ok(())
    }

    /// The next kernel must not start before what is in the stream has ended.
    pub(super) fn break_chain(&self) {
        self.chained.set(false);
    }
}

impl Kernels {
    fn load(context: &Arc<CudaContext>) -> Result<Self, cudarc::driver::DriverError> {
        let module = context.load_module(Ptx::from_binary(KERNELS.to_vec()))?;
        let get = |name: &str| module.load_function(name);
        let products = |kind: &str| -> Result<[CudaFunction; 5], _> {
            Ok([
                get(&format!("{kind}_8"))?,
                get(&format!("{kind}_16"))?,
                get(&format!("{kind}_32"))?,
                get(&format!("{kind}_32_tall"))?,
                get(&format!("{kind}_wide"))?,
            ])
        };
        let attend = |kind: &str, lanes: u32| -> Result<[CudaFunction; 3], _> {
            let one = |heads: u32| get(&format!("attend_{kind}_{lanes}_{heads}"));
            Ok([one(1)?, one(2)?, one(4)?])
        };
        let attends = |kind: &str| -> Result<[[CudaFunction; 3]; 3], _> {
            Ok([attend(kind, 4)?, attend(kind, 8)?, attend(kind, 16)?])
        };
        Ok(Self {
            repack_ternary: get("repack_ternary")?,
            repack_dense: get("repack_dense")?,
            embed: get("embed")?,
            store_kv: get("store_kv")?,
            read_memory: get("read_memory")?,
            norm_rows: [get("norm_rows_4")?, get("norm_rows_8")?, get("norm_rows_24")?],
            norm_attention: [get("norm_attention_4")?, get("norm_attention_8")?],
            products: [products("ternary")?, products("f16")?, products("bf16")?],
            attend: [attends("f16")?, attends("int8")?],
        })
    }

    /// The norm of rows of this width, at most [`WIDEST_ROW`].
    pub(super) fn norm_rows(&self, width: usize) -> &CudaFunction {
        &self.norm_rows[[4, 8].iter().filter(|most| width > *most * NORM_THREADS as usize).count()]
    }

    /// The norm after attention over rows of this width, at most [`WIDEST_HEADS`].
    pub(super) fn norm_attention(&self, width: usize) -> &CudaFunction {
        &self.norm_attention[usize::from(width > 4 * NORM_THREADS as usize)]
    }

    /// The product for so many tokens and groups of rows, and how it is cut into blocks.
    pub(super) fn product(&self, kind: Kind, tokens: usize, groups: usize) -> (&CudaFunction, Tile) {
        let kernels = &self.products[kind as usize];
        // Floats take four times the registers: more warps would leave room for one block.
        let warps = if kind == Kind::Ternary { 16 } else { 8 };
        match tokens {
            0..=8 => (&kernels[0], Tile::Narrow { groups: 1, warps }),
            9..=16 => (&kernels[1], Tile::Narrow { groups: 1, warps }),
            17..=NARROW if groups < MANY_GROUPS => (&kernels[2], Tile::Narrow { groups: 1, warps: 8 }),
            17..=NARROW => (&kernels[3], Tile::Narrow { groups: 2, warps: 8 }),
            _ => (&kernels[4], Tile::Wide),
        }
    }

    /// Attention with heads of this width in groups of `group`, and how many heads a block takes.
    pub(super) fn attend(&self, int8: bool, head_dim: usize, group: usize) -> (&CudaFunction, usize) {
        let lanes = [64, 128].iter().filter(|most| head_dim > **most).count();
        let (index, heads) = if group.is_multiple_of(4) {
            (2, 4)
        } else if group.is_multiple_of(2) {
            (1, 2)
        } else {
            (0, 1)
        };
        (&self.attend[usize::from(int8)][lanes][index], heads)
    }
}

/// Most tokens of the kernels that decoding uses.
pub(super) const NARROW: usize = 32;
/// Groups of rows that fill a GPU also when a block takes two, which halves the reads of the input.
const MANY_GROUPS: usize = 320;

/// How a product is cut into blocks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tile {
    /// All tokens, and this many groups of 16 rows; at most so many warps share the columns.
    Narrow { groups: usize, warps: usize },
    /// 64 tokens and 8 groups, one per warp.
    Wide,
}
