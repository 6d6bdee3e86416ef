//! Energy of the CPU packages and of NVIDIA GPUs, where the host counts it and lets us read it.

use nvml_wrapper::Nvml;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux shows the counters of RAPL (Intel and AMD).
const POWERCAP: &str = "/sys/class/powercap";

/// NVIDIA's library as drivers and their containers have it; the name without the number comes with developers' packages only.
const NVML: &str = "libnvidia-ml.so.1";

/// The counters that can be read; often none: in virtual machines, without the right to read, and without a GPU.
pub(super) struct Energy {
    packages: Vec<Package>,
    gpus: Option<Gpus>,
}

/// GPUs that this process sees and that count their energy.
struct Gpus {
    nvml: Nvml,
    gpus: Vec<Gpu>,
}

struct Gpu {
    index: u32,
    /// Millijoules since the driver was loaded, when we started.
    start: u64,
    last: u64,
}

struct Package {
    name: String,
    counter: PathBuf,
    /// The counter starts again after this value, in microjoules.
    range: u64,
    last: u64,
    total: u64,
}

impl Energy {
    /// Starts counting from now.
    pub(super) fn of_this_host() -> Self {
        Self { gpus: Gpus::of_this_host(OsStr::new(NVML)), ..Self::below(Path::new(POWERCAP)) }
    }

    /// Packages whose counters lie under `root`.
    pub(super) fn below(root: &Path) -> Self {
        let mut packages: Vec<Package> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            // `intel-rapl:0` is a package or the platform, `intel-rapl:0:1` a part of it.
            .filter(|entry| entry.file_name().to_str().is_some_and(is_whole))
            .filter_map(|entry| Package::open(&entry.path()))
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Self { packages, gpus: None }
    }

    /// Whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.gpus.is_none()
    }

    /// Joules since the start, by package; GPUs are called `gpu-` and their number.
    pub(super) fn read(&mut self) -> Vec<(String, f64)> {
        let packages = self.packages.iter_mut().map(|package| (package.name.clone(), package.read()));
        packages.chain(self.gpus.iter_mut().flat_map(Gpus::read)).collect()
    }
}

impl Gpus {
    /// Loads the driver's library while running; where there is none, or no GPU that counts, there is nothing to show.
    fn of_this_host(library: &OsStr) -> Option<Self> {
        let nvml = Nvml::builder().lib_path(library).init().ok()?;
        let count = nvml.device_count().ok()?;
        let counter = |index| nvml.device_by_index(index).and_then(|gpu| gpu.total_energy_consumption());
        let gpus: Vec<Gpu> =
            (0..count).filter_map(|index| counter(index).ok().map(|start| Gpu { index, start, last: start })).collect();
        (!gpus.is_empty()).then_some(Self { nvml, gpus })
    }

    fn read(&mut self) -> Vec<(String, f64)> {
        let Self { nvml, gpus } = self;
        let read = |gpu: &mut Gpu| {
            if let Ok(now) = nvml.device_by_index(gpu.index).and_then(|device| device.total_energy_consumption()) {
                gpu.last = now.max(gpu.last);
            }
            (format!("gpu-{}", gpu.index), (gpu.last - gpu.start) as f64 / 1e3)
        };
        gpus.iter_mut().map(read).collect()
    }
}

fn is_whole(name: &str) -> bool {
    name.strip_prefix("intel-rapl:").is_some_and(|index| index.bytes().all(|b| b.is_ascii_digit()))
}

impl Package {
    fn open(dir: &Path) -> Option<Self> {
        let counter = dir.join("energy_uj");
        let last = number(&counter)?;
        let range = number(&dir.join("max_energy_range_uj"))?;
        let name = fs::read_to_string(dir.join("name")).ok()?.trim().to_owned();
        // `psys` is the whole platform, the packages in it.
        if !name.starts_with("package") {
            return None;
        }
        Some(Self { name, counter, range, last, total: 0 })
    }

    fn read(&mut self) -> f64 {
        if let Some(now) = number(&self.counter) {
            let passed = if now >= self.last { now - self.last } else { now + self.range.saturating_sub(self.last) };
            self.total += passed;
            self.last = now;
        }
        self.total as f64 / 1e6
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_are_no_gpus() {
        assert!(Gpus::of_this_host(OsStr::new("libno-such-driver.so.1")).is_none());
    }

    #[test]
    fn packages_are_counted_over_the_end_of_their_range_and_parts_and_the_platform_are_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(Energy::below(root.path()).is_empty());
        for (dir, name) in
            [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys"), ("dtpm", "x")]
        {
            let dir = root.path().join(dir);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("energy_uj"), "900000\n").unwrap();
            fs::write(dir.join("max_energy_range_uj"), "1000000\n").unwrap();
            fs::write(dir.join("name"), format!("{name}\n")).unwrap();
        }
        let counter = root.path().join("intel-rapl:0/energy_uj");
        let mut energy = Energy::below(root.path());
        assert_eq!(energy.read(), [("package-0".to_owned(), 0.0)]);
        fs::write(&counter, "950000\n").unwrap();
        assert_eq!(energy.read()[0].1, 0.05);
        fs::write(&counter, "20000\n").unwrap();
        assert_eq!(energy.read()[0].1, 0.12);
        fs::remove_file(&counter).unwrap();
        assert_eq!(energy.read()[0].1, 0.12, "what cannot be read any more stands still");
        assert!(Energy::below(root.path()).is_empty(), "and is absent where it never could");
    }
}
