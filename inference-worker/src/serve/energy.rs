//! Energy of the CPU packages, where the host counts it and lets us read it.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux shows the counters of RAPL (Intel and AMD).
const POWERCAP: &str = "/sys/class/powercap";

/// The packages whose counters can be read; often none: in virtual machines, and without the right to read.
pub(super) struct Energy {
    packages: Vec<Package>,
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
        Self::below(Path::new(POWERCAP))
    }

    fn below(root: &Path) -> Self {
        let mut packages: Vec<Package> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            .filter(|entry| entry.file_name().to_str().is_some_and(is_package))
            .filter_map(|entry| Package::open(&entry.path()))
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Self { packages }
    }

    /// Whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// Joules since the start, by package.
    pub(super) fn read(&mut self) -> Vec<(String, f64)> {
        self.packages.iter_mut().map(|package| (package.name.clone(), package.read())).collect()
    }
}

fn is_package(name: &str) -> bool {
    name.strip_prefix("intel-rapl:").is_some_and(|index| index.bytes().all(|b| b.is_ascii_digit()))
}

impl Package {
    fn open(dir: &Path) -> Option<Self> {
        let counter = dir.join("energy_uj");
        let last = number(&counter)?;
        let range = number(&dir.join("max_energy_range_uj"))?;
        let name = fs::read_to_string(dir.join("name")).ok()?.trim().to_owned();
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
    fn packages_are_counted_over_the_end_of_their_range_and_parts_are_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(Energy::below(root.path()).is_empty());
        for (dir, name) in [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("dtpm", "x")] {
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
