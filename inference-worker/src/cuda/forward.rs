//! The forward pass on the GPU: nine kernels a layer, for decoding as one CUDA graph.

mod buffers;
mod layers;

pub(super) use layers::multiply;

use super::cache::{Cache, KvPrecision};
use super::error::{CudaError, Doing};
use super::gpu::{Gpu, NARROW};
use super::params::Seat;
use super::weights::Weights;
use crate::engine::{DevicePlan, DeviceTooSmall, Options, Turn};
use crate::model::{Model, ModelConfig};
use buffers::Buffers;
use cudarc::driver::{CudaGraph, CudaSlice, PinnedHostSlice, sys};
use std::cell::RefCell;
use std::collections::HashMap;

/// Most tokens that run at once; a longer pass is cut, which changes no result of a ternary layer.
const MOST_TOKENS: usize = 1024;
/// Most blocks that share the positions of one sequence.
const MOST_SPLITS: usize = 32;
/// A block of attention that reads fewer positions is not worth starting.
const LEAST_POSITIONS: usize = 32;
/// Blocks of attention that fill a GPU.
const ENOUGH_BLOCKS: usize = 1024;
/// Threads that copy logits to where they are wanted, and rows below which another one is not worth starting.
const COPIERS: usize = 8;
const ROWS_PER_COPIER: usize = 2;

/// A model in the memory of one GPU. Belongs to one thread at a time.
pub struct CudaModel {
    pub(super) gpu: Gpu,
    config: ModelConfig,
    precision: &'static str,
    kernel: String,
    bytes_per_pass: usize,
    products_per_token: (usize, usize),
    weights: Weights,
    pub(super) kv: KvPrecision,
    /// Buffers of decoding, whose addresses are in the graphs.
    decode: Buffers,
    /// Buffers of prompts, which grow.
    prompt: RefCell<Option<Buffers>>,
    /// By tokens and splits. Dropped before the buffers are, as fields are in order of declaration and no graph runs then.
    graphs: RefCell<HashMap<(usize, usize), Graph>>,
    head: Head,
}

/// A pass over some tokens, ready to be started again.
struct Graph(CudaGraph);

// SAFETY: a graph may be used by any thread, but by one at a time; its model is not `Sync`, so it is.
unsafe impl Send for Graph {}

/// Logits of up to [`NARROW`] rows, on both sides.
struct Head {
    logits: CudaSlice<u8>,
    host: RefCell<PinnedHostSlice<f32>>,
}

impl CudaModel {
    /// Copies a model to GPU number `ordinal`.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no such GPU, too little memory, or a model that the kernels do not compute.
    pub fn new(model: &Model, ordinal: usize, kv: KvPrecision) -> Result<Self, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        let weights = Weights::new(&gpu, model)?;
        let config = model.config().clone();
        let decode = Buffers::new(&gpu, &config, &weights, kv, NARROW, MOST_SPLITS)?;
        let head = Head {
            logits: gpu.zeros(NARROW * config.vocab_size * size_of::<f32>())?,
            host: RefCell::new(gpu.pinned(NARROW * config.vocab_size)?),
        };
        gpu.wait()?;
        Ok(Self {
            kernel: format!("cuda-sm{}{}", gpu.capability.0, gpu.capability.1),
            precision: model.precision(),
            bytes_per_pass: model.bytes_per_pass(),
            products_per_token: model.products_per_token(),
            config,
            weights,
            kv,
            decode,
            prompt: RefCell::new(None),
            graphs: RefCell::new(HashMap::new()),
            head,
            gpu,
        })
    }

    /// Shape and arithmetic.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// As [`Model::precision`].
    pub fn precision(&self) -> &'static str {
        self.precision
    }

    /// `cuda-sm90` and the like.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The GPU's name.
    pub fn gpu_name(&self) -> &str {
        &self.gpu.name
    }

    /// As [`Model::bytes_per_pass`].
    pub fn bytes_per_pass(&self) -> usize {
        self.bytes_per_pass
    }

    /// As [`Model::products_per_token`].
    pub fn products_per_token(&self) -> (usize, usize) {
        self.products_per_token
    }

    /// Bytes of device memory of keys and values per position.
    pub fn kv_bytes_per_position(&self) -> usize {
        let factor = if self.kv == KvPrecision::Int8 { size_of::<f32>() } else { 0 };
        self.config.layers * 2 * self.config.kv_heads * (self.config.head_dim * self.kv.bytes() + factor)
    }

    /// Bytes of device memory that are free.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        self.gpu.free_bytes()
    }

    /// What the sequences of these options need of the memory that the weights and the buffers of the largest pass leave.
    /// Those buffers are taken here, so that no request finds them missing.
    ///
    /// # Errors
    /// The driver's, or inside, that not one sequence fits.
    pub fn plan(&self, options: &Options) -> Result<Result<DevicePlan, DeviceTooSmall>, CudaError> {
        self.gpu.context.bind_to_thread().doing("taking the context")?;
        self.prompt_buffers((options.prefill_chunk + options.max_batch).min(MOST_TOKENS))?;
        self.gpu.wait()?;
        let free = self.gpu.free_bytes()?;
        Ok(DevicePlan::choose(free, self.kv_bytes_per_position(), self.config.context, options))
    }

    /// Bytes per second that a kernel reads from device memory: the best of `rounds`.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_bandwidth(&self, rounds: usize) -> Result<f64, CudaError> {
        self.gpu.read_bandwidth(rounds)
    }

    /// An empty cache for one sequence of at most `capacity` tokens; the model's context bounds it.
    pub fn new_cache(&self, capacity: usize) -> Cache {
        Cache::new(&self.gpu, &self.config, self.kv, capacity)
    }

    /// A cache that begins with the first `len` tokens of another one.
    pub(crate) fn fork(&self, cache: &Cache, len: usize, capacity: usize) -> Cache {
        let mut fork = self.new_cache(capacity);
        fork.copy_from(&self.gpu, cache, len);
        fork
    }

    /// One pass over all turns. After an error the caches are as they were, but for what lies behind their length.
    pub(crate) fn forward(&self, turns: &mut [Turn<'_, Cache>]) -> Result<(), String> {
        self.admissible(turns)?;
        let (mut seats, mut wanted) = (Vec::new(), Vec::new());
        for (at, turn) in turns.iter_mut().enumerate() {
            let (cache, capacity) = (turn.cache.address(&self.gpu)?, turn.cache.capacity() as u32);
            let position = turn.cache.len() as u32;
            wanted.extend(turn.want.iter().map(|want| (at, seats.len() + *want as usize)));
            seats.extend((position..).zip(turn.tokens).map(|(position, token)| Seat {
                cache,
                token: *token,
                position,
                capacity,
                row: 0,
            }));
            turn.logits.clear();
            turn.logits.reserve_exact(turn.want.len() * self.config.vocab_size);
        }
        self.run(&mut seats, &wanted, turns).map_err(|error| describe(&error))?;
        for turn in turns {
            turn.cache.advance(turn.tokens.len());
        }
        Ok(())
    }

    fn admissible(&self, turns: &[Turn<'_, Cache>]) -> Result<(), String> {
        use crate::model::ForwardError;
        for (step, turn) in turns.iter().enumerate() {
            let (len, tokens, capacity) = (turn.cache.len(), turn.tokens.len(), turn.cache.capacity());
            let error = if tokens > capacity - len {
                Some(ForwardError::Capacity { step, len, tokens, capacity })
            } else if let Some(token) = turn.tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
                Some(ForwardError::Token { step, token: *token, vocab_size: self.config.vocab_size })
            } else {
                let outside = turn.want.iter().find(|want| **want as usize >= tokens);
                outside.map(|position| ForwardError::Position { step, position: *position, tokens })
            };
            if let Some(error) = error {
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// `wanted`: turn and seat of each row of logits, seats rising.
    fn run(
        &self,
        seats: &mut [Seat],
        wanted: &[(usize, usize)],
        turns: &mut [Turn<'_, Cache>],
    ) -> Result<(), CudaError> {
        self.gpu.context.bind_to_thread().doing("taking the context")?;
        let decodes = wanted.len() == seats.len() && turns.iter().all(|turn| turn.tokens.len() == 1);
        if decodes && seats.len() <= NARROW {
            seats.iter_mut().zip(0..).for_each(|(seat, row)| seat.row = row);
            self.decode(seats)?;
            return self.take_logits(wanted, turns);
        }
        let mut first = 0;
        for seats in seats.chunks_mut(MOST_TOKENS) {
            let inside: Vec<(usize, usize)> = wanted
                .iter()
                .filter(|(_, seat)| (first..first + seats.len()).contains(seat))
                .map(|(turn, seat)| (*turn, seat - first))
                .collect();
            self.prompt(seats, &inside, turns)?;
            first += seats.len();
        }
        Ok(())
    }

    /// One token of each sequence, with logits.
    fn decode(&self, seats: &[Seat]) -> Result<(), CudaError> {
        let splits = self.splits(seats);
        self.gpu.write(self.gpu.address(&self.decode.seats), seats)?;
        let mut graphs = self.graphs.borrow_mut();
        if let Some(Graph(graph)) = graphs.get(&(seats.len(), splits)) {
            self.gpu.break_chain();
            return graph.launch().doing("starting a graph");
        }
        // The seats are on their way; a capture records what follows and runs nothing.
        self.gpu.wait()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.gpu.stream.begin_capture(mode).doing("recording a graph")?;
        self.gpu.break_chain();
        let recorded =
            self.layers(&self.decode, seats.len(), splits).and_then(|()| self.logits(&self.decode, seats.len()));
        // Ends the capture whatever happened: the stream must be usable again.
        let graph = self.gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).doing("recording a graph");
        recorded?;
        let graph = graph?.ok_or(CudaError::Driver {
            doing: "recording a graph",
            source: cudarc::driver::DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        })?;
        self.gpu.break_chain();
        graph.launch().doing("starting a graph")?;
        graphs.insert((seats.len(), splits), Graph(graph));
        Ok(())
    }

    /// Makes room for a pass of so many tokens.
    fn prompt_buffers(&self, tokens: usize) -> Result<(), CudaError> {
        let mut prompt = self.prompt.borrow_mut();
        if prompt.as_ref().is_none_or(|buffers| buffers.tokens < tokens) {
            // The old ones go first: device memory may be short.
            *prompt = None;
            let tokens = tokens.next_power_of_two().max(NARROW);
            *prompt = Some(Buffers::new(&self.gpu, &self.config, &self.weights, self.kv, tokens, 1)?);
        }
        Ok(())
    }

    /// Any tokens, logits of some.
    fn prompt(
        &self,
        seats: &mut [Seat],
        wanted: &[(usize, usize)],
        turns: &mut [Turn<'_, Cache>],
    ) -> Result<(), CudaError> {
        self.prompt_buffers(seats.len())?;
        let prompt = self.prompt.borrow();
        let Some(buffers) = prompt.as_ref() else { return Ok(()) };
        let count = seats.len();
        let mut blocks = wanted.chunks(NARROW);
        let first = blocks.next().unwrap_or_default();
        let mut name = |wanted: &[(usize, usize)]| {
            seats.iter_mut().zip(wanted).for_each(|(seat, (_, row))| seat.row = *row as u32);
            self.gpu.write(self.gpu.address(&buffers.seats), seats)
        };
        name(first)?;
        self.layers(buffers, count, 1)?;
        for (at, wanted) in std::iter::once(first).chain(blocks).filter(|wanted| !wanted.is_empty()).enumerate() {
            if at > 0 {
                name(wanted)?;
            }
            self.logits(buffers, wanted.len())?;
            self.take_logits(wanted, turns)?;
        }
        self.gpu.wait()
    }

    /// How many blocks share the positions of a sequence: enough to fill the GPU, none with little to do.
    fn splits(&self, seats: &[Seat]) -> usize {
        let longest = seats.iter().map(|seat| seat.position as usize + 1).max().unwrap_or(1);
        let (_, together) = self.gpu.kernels.attend(false, self.config.head_dim, self.group());
        let blocks = seats.len() * self.config.heads / together;
        let useful = longest.div_ceil(LEAST_POSITIONS).next_power_of_two();
        let fitting = (ENOUGH_BLOCKS / blocks).max(1).next_power_of_two();
        useful.min(fitting).min(MOST_SPLITS)
    }

    fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Copies the head's buffer to where the rows are wanted.
    fn take_logits(&self, wanted: &[(usize, usize)], turns: &mut [Turn<'_, Cache>]) -> Result<(), CudaError> {
        let width = self.config.vocab_size;
        let mut host = self.head.host.borrow_mut();
        let host = &mut host.as_mut_slice().doing("reading logits")?[..wanted.len() * width];
        self.gpu.read(self.gpu.address(&self.head.logits), host)?;
        self.gpu.wait()?;
        // Turns and rows come in the same order.
        let mut rows = wanted.iter().zip(host.chunks_exact(width)).peekable();
        let mut copies: Vec<(&mut Vec<f32>, Vec<&[f32]>)> = Vec::new();
        for (index, turn) in turns.iter_mut().enumerate() {
            let mut own = Vec::new();
            while let Some((_, row)) = rows.next_if(|((turn, _), _)| *turn == index) {
                own.push(row);
            }
            if !own.is_empty() {
                copies.push((&mut turn.logits, own));
            }
        }
        let share = copies.len().div_ceil(COPIERS).max(ROWS_PER_COPIER);
        let copy = |part: &mut [(&mut Vec<f32>, Vec<&[f32]>)]| {
            for (to, rows) in part {
                for row in rows {
                    to.extend_from_slice(row);
                }
            }
        };
        // Most of the time goes to touching new memory, which threads do side by side.
        std::thread::scope(|scope| {
            let mut parts = copies.chunks_mut(share);
            let own = parts.next();
            parts.for_each(|part| {
                scope.spawn(move || copy(part));
            });
            own.into_iter().for_each(copy);
        });
        Ok(())
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
