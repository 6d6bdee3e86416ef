//! What this machine can do at most, to compare with what is done.

use super::{Cpu, Kernels, Set};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use std::time::Instant;

/// Bytes that are read for a measurement: more than the caches hold.
const BYTES: usize = 256 << 20;
/// Bytes that a thread takes at once.
const PART: usize = 1 << 20;

impl Cpu {
    /// Bytes per second that all threads read from memory together, in one stream each: the best of `rounds`.
    pub fn read_bandwidth(&self, rounds: usize) -> f64 {
        let mut data: Vec<u64> = Vec::with_capacity(BYTES / 8);
        super::memory::advise_huge_pages(&mut data);
        data.extend((0..BYTES as u64 / 8).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let parts: Vec<&[u64]> = data.chunks(PART / 8).collect();
        let mut best = 0.0_f64;
        for _ in 0..rounds {
            let start = Instant::now();
            self.pool().run(parts.len(), &|part| {
                let (lanes, _) = parts[part].as_chunks::<32>();
                let mut sums = [0_u64; 32];
                for lane in lanes {
                    sums.iter_mut().zip(lane).for_each(|(sum, x)| *sum ^= x);
                }
                std::hint::black_box(sums);
            });
            best = best.max(BYTES as f64 / start.elapsed().as_secs_f64());
        }
        best
    }

    /// Multiply-adds per second of the instruction that ternary products rest on, on all threads together, with
    /// nothing to load: the best of `rounds`. `None` for the portable kernels, which have no such instruction.
    pub fn peak_products(&self, rounds: usize) -> Option<f64> {
        const CALLS: usize = 200;
        let work = self.kernels().peak()?;
        let mut best = 0.0_f64;
        for _ in 0..rounds {
            let start = Instant::now();
            self.pool().run(self.pool().threads() * 4, &|_| {
                for _ in 0..CALLS {
                    std::hint::black_box(self.kernels().peak());
                }
            });
            let products = (self.pool().threads() * 4 * CALLS * work) as f64;
            best = best.max(products / start.elapsed().as_secs_f64());
        }
        Some(best)
    }
}

impl Kernels {
    /// Runs the instruction for a while; returns how many multiply-adds that were.
    fn peak(self) -> Option<usize> {
        match self.set {
            Set::Portable => None,
            // SAFETY: this set exists only where the CPU has the features of the module (see `Set`).
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => Some(unsafe {
                std::hint::black_box(super::neon::peak());
                super::neon::PEAK_WORK
            }),
            // SAFETY: the sets exist only where the CPU has the features of the modules (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => Some(unsafe {
                std::hint::black_box(avx2::peak());
                avx2::PEAK_WORK
            }),
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni => Some(unsafe {
                std::hint::black_box(super::avx_vnni::peak());
                super::avx_vnni::PEAK_WORK
            }),
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => Some(unsafe {
                std::hint::black_box(avx512::peak());
                avx512::PEAK_WORK
            }),
        }
    }
}
