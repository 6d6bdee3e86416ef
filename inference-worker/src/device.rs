//! Where a model runs: on the CPU, or on a GPU where the build and the host have one.

use crate::engine::{Network, Turn};
use crate::model::{KvCache, Model, ModelConfig};

/// Where a model is asked to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// On the first GPU if this build, the host and the model allow, else on the CPU; the reason is logged.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On this GPU, or not at all.
    Cuda {
        /// Number of the GPU, from 0.
        ordinal: usize,
    },
}

impl std::str::FromStr for Device {
    type Err = String;

    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { ordinal: 0 }),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Self::Cuda { ordinal }),
                _ => Err("write auto, cpu, cuda, or cuda:N for GPU number N".to_owned()),
            },
        }
    }
}

/// How keys and values are stored on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum GpuKv {
    /// Half precision.
    #[default]
    F16,
    /// int8 with one factor per row of a head: half the memory.
    Int8,
}

/// Why a model does not run on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The CUDA backend is not in this program.
    #[error("this program was built without CUDA; use the CUDA image (build with `--features cuda`), or --device cpu")]
    NotBuilt,
    /// A setting of the CPU's path.
    #[cfg(feature = "cuda")]
    #[error(
        "{option} is for the CPU: leave it out on a GPU (there: --gpu-kv, --max-batch, --context), or serve with --device cpu"
    )]
    ForCpu {
        /// As on the command line.
        option: &'static str,
    },
    /// The backend refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
}

/// A model where it runs.
#[cfg_attr(feature = "cuda", expect(clippy::large_enum_variant, reason = "there is one per process"))]
pub enum Runner {
    /// On the CPU.
    Cpu(Model),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::CudaModel>),
}

/// Keys and values of one sequence, where the model runs.
pub enum Cache {
    /// In the host's memory.
    Cpu(KvCache),
    /// In a GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Cache),
}

impl Cache {
    /// Forgets all tokens after the first `len`; does nothing if there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu(cache) => cache.truncate(len),
            #[cfg(feature = "cuda")]
            Self::Cuda(cache) => cache.truncate(len),
        }
    }
}

impl Runner {
    /// Puts a model where it is to run. On a GPU its results are compared with the CPU's first. `for_cpus` names an option
    /// that was given and that only a CPU has.
    ///
    /// # Errors
    /// [`DeviceError`] where a GPU was asked for by name. With [`Device::Auto`] the same reason is logged and the CPU taken.
    pub fn place(model: Model, device: Device, kv: GpuKv, for_cpus: Option<&'static str>) -> Result<Self, DeviceError> {
        let ordinal = match device {
            Device::Cpu => return Ok(Self::Cpu(model)),
            Device::Cuda { ordinal } => ordinal,
            Device::Auto => 0,
        };
        match Self::on_gpu(&model, ordinal, kv, for_cpus) {
            Ok(runner) => Ok(runner),
            Err(error) if device == Device::Auto => {
                // A build without CUDA has nothing to report.
                if !matches!(error, DeviceError::NotBuilt) {
                    tracing::info!(reason = %error, "running on the CPU");
                }
                Ok(Self::Cpu(model))
            }
            Err(error) => Err(error),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(model: &Model, ordinal: usize, kv: GpuKv, for_cpus: Option<&'static str>) -> Result<Self, DeviceError> {
        use crate::cuda::{CudaModel, KvPrecision};
        if let Some(option) = for_cpus {
            return Err(DeviceError::ForCpu { option });
        }
        let kv = match kv {
            GpuKv::F16 => KvPrecision::F16,
            GpuKv::Int8 => KvPrecision::Int8,
        };
        let gpu = CudaModel::new(model, ordinal, kv)?;
        gpu.check(model)?;
        let (free, position) = (gpu.free_bytes()?, gpu.kv_bytes_per_position());
        tracing::info!(gpu = gpu.gpu_name(), free_bytes = free, kv_bytes_per_position = position, "running on a GPU");
        Ok(Self::Cuda(Box::new(gpu)))
    }

    #[cfg(not(feature = "cuda"))]
    fn on_gpu(_: &Model, _: usize, _: GpuKv, _: Option<&'static str>) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// Shape and arithmetic.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Cpu(model) => model.config(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.config(),
        }
    }

    /// As [`Model::precision`].
    pub fn precision(&self) -> &'static str {
        match self {
            Self::Cpu(model) => model.precision(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.precision(),
        }
    }

    /// The CPU's kernels, or `cuda-sm90` and the like.
    pub fn kernel(&self) -> &str {
        match self {
            Self::Cpu(model) => model.kernel(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.kernel(),
        }
    }

    /// `cpu` or `cuda`.
    pub fn device(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
        }
    }

    /// As [`Model::products_per_token`].
    pub fn products_per_token(&self) -> (usize, usize) {
        match self {
            Self::Cpu(model) => model.products_per_token(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.products_per_token(),
        }
    }
}

impl Network for Runner {
    type Cache = Cache;

    fn vocabulary(&self) -> usize {
        self.config().vocab_size
    }

    fn new_cache(&self, capacity: usize) -> Cache {
        match self {
            Self::Cpu(model) => Cache::Cpu(Network::new_cache(model, capacity)),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => Cache::Cuda(model.new_cache(capacity)),
        }
    }

    fn fork(&self, cache: &Cache, len: usize, capacity: usize) -> Cache {
        match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => Cache::Cpu(model.fork(cache, len, capacity)),
            #[cfg(feature = "cuda")]
            (Self::Cuda(model), Cache::Cuda(cache)) => Cache::Cuda(model.fork(cache, len, capacity)),
            #[cfg(feature = "cuda")]
            _ => unreachable!("a runner's caches are where it is"),
        }
    }

    fn bytes_per_pass(&self) -> usize {
        match self {
            Self::Cpu(model) => Network::bytes_per_pass(model),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.bytes_per_pass(),
        }
    }

    fn forward(&self, turns: &mut [Turn<'_, Cache>]) -> Result<(), String> {
        match self {
            Self::Cpu(model) => {
                let mut inner: Vec<_> = turns.iter_mut().map(Turn::on_cpu).collect();
                Network::forward(model, &mut inner)?;
                let logits: Vec<Vec<f32>> = inner.into_iter().map(|turn| turn.logits).collect();
                turns.iter_mut().zip(logits).for_each(|(turn, logits)| turn.logits = logits);
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => {
                let mut inner: Vec<_> = turns.iter_mut().map(Turn::on_gpu).collect();
                model.forward(&mut inner)?;
                let logits: Vec<Vec<f32>> = inner.into_iter().map(|turn| turn.logits).collect();
                turns.iter_mut().zip(logits).for_each(|(turn, logits)| turn.logits = logits);
            }
        }
        Ok(())
    }

    fn spread(&self, count: usize, part: &(dyn Fn(usize) + Sync)) {
        match self {
            Self::Cpu(model) => Network::spread(model, count, part),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => crate::engine::on_threads(count, part),
        }
    }
}

impl Turn<'_, Cache> {
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::infallible_destructuring_match, reason = "GPUs come with a feature")
    )]
    fn on_cpu(&mut self) -> Turn<'_, KvCache> {
        let cache = match self.cache {
            Cache::Cpu(cache) => cache,
            #[cfg(feature = "cuda")]
            Cache::Cuda(_) => unreachable!("a runner's caches are where it is"),
        };
        Turn { cache, tokens: self.tokens, want: self.want, logits: Vec::new() }
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&mut self) -> Turn<'_, crate::cuda::Cache> {
        match self.cache {
            Cache::Cuda(cache) => Turn { cache, tokens: self.tokens, want: self.want, logits: Vec::new() },
            Cache::Cpu(_) => unreachable!("a runner's caches are where it is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Precision, Shape};

    fn demo() -> Model {
        Model::random(Shape::find("demo").unwrap(), Precision::Ternary, 1, &LoadOptions::default()).unwrap()
    }

    #[test]
    fn devices_have_names() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda { ordinal: 0 }));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda { ordinal: 3 }));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_runner_on_the_cpu_gives_the_logits_of_its_model() {
        let model = demo();
        let tokens = [5, 900, 17];
        let mut cache = model.new_cache(3);
        let mut steps = [crate::model::Step::new(&mut cache, &tokens, crate::model::Want::Last)];
        model.forward(&mut steps).unwrap();
        let [step] = steps;
        let runner = Runner::place(model, Device::Cpu, GpuKv::F16, None).unwrap();
        let mut cache = Network::new_cache(&runner, 3);
        let mut turns = [Turn { cache: &mut cache, tokens: &tokens, want: &[2], logits: Vec::new() }];
        runner.forward(&mut turns).unwrap();
        assert_eq!(turns[0].logits, step.logits);
        assert_eq!((runner.device(), Network::vocabulary(&runner)), ("cpu", 1024));
    }

    /// On machines without a GPU, and in builds without CUDA, which are those of the tests.
    #[test]
    fn without_a_gpu_auto_takes_the_cpu_and_a_gpu_by_name_is_refused_with_the_remedy() {
        match Runner::place(demo(), Device::Cuda { ordinal: 0 }, GpuKv::F16, None) {
            Err(error) => {
                assert!(error.to_string().contains("--device cpu"), "{error}");
                assert_eq!(Runner::place(demo(), Device::Auto, GpuKv::F16, None).unwrap().device(), "cpu");
            }
            Ok(runner) => assert_eq!(runner.device(), "cuda"),
        }
    }
}
