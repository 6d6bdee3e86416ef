//! What a stranger can hand to each parser, as a bounded property test: every seed of the corpus, and what random changes
//! make of it. More of it:
//! `FUZZ_ROUNDS=100000 cargo test --release -p inference-worker --test fuzz`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod targets;

use inference_worker::engine::random::Random;
use peak_alloc::PeakAlloc;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Changed inputs of each seed.
const ROUNDS: u32 = 60;
/// Memory that an input may cost: a share of its own size, and what a small model and its caches take anyway.
const PER_BYTE: usize = 256;
const ANYWAY: usize = 48 << 20;
/// One that takes longer hangs: none takes a second on an idle machine.
const TIME: Duration = Duration::from_secs(120);

/// What parsers trip over: sizes, signs, nesting, and ends of things.
const WORDS: [&[u8]; 20] = [
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"4294967296",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"{{",
    b"{% for i in range(99999999) %}{% endfor %}",
];

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = |random: &mut Random, len: usize| random.below(len + 1);
    match random.below(8) {
        0 if !input.is_empty() => {
            let place = random.below(input.len());
            input[place] ^= 1 << random.below(8);
        }
        1 if !input.is_empty() => {
            let place = random.below(input.len());
            input[place] = random.bits() as u8;
        }
        2 => {
            let place = at(random, input.len());
            let word = WORDS[random.below(WORDS.len())];
            input.splice(place..place, word.iter().copied());
        }
        3 => {
            // Over what is there: lengths keep their places.
            let place = at(random, input.len());
            let word = WORDS[random.below(WORDS.len())];
            let end = (place + word.len()).min(input.len());
            input[place..end].copy_from_slice(&word[..end - place]);
        }
        4 => {
            let (from, to) = (at(random, input.len()), at(random, input.len()));
            input.drain(from.min(to)..from.max(to).min(from.min(to) + 64));
        }
        5 => {
            let from = at(random, input.len());
            let to = (from + random.below(64)).min(input.len());
            let again = input[from..to].to_vec();
            input.splice(to..to, again);
        }
        6 => input.truncate(at(random, input.len())),
        _ if !other.is_empty() => {
            let (place, from) = (at(random, input.len()), random.below(other.len()));
            let to = (from + random.below(48)).min(other.len());
            input.splice(place..place, other[from..to].iter().copied());
        }
        _ => input.clear(),
    }
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

/// Runs one input; a finding is written down.
fn check(name: &str, target: fn(&[u8]), input: &[u8], what: &str) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let (done, end) = mpsc::channel();
    let copy = input.to_vec();
    // One that hangs is left behind: the test ends without it.
    let running = thread::spawn(move || {
        target(&copy);
        // Nobody waits for it any more where its time is up.
        let _ = done.send(());
    });
    let outcome = end.recv_timeout(TIME);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let why = match outcome {
        Ok(()) if taken <= ANYWAY + PER_BYTE * input.len() => {
            running.join().unwrap();
            return;
        }
        Ok(()) => format!("took {taken} bytes"),
        Err(mpsc::RecvTimeoutError::Disconnected) => "panicked".to_owned(),
        Err(mpsc::RecvTimeoutError::Timeout) => format!("did not end within {TIME:?}"),
    };
    let found = std::env::temp_dir().join(format!("finding-{name}"));
    std::fs::write(&found, input).unwrap();
    panic!("{name}, {what}: {why}; the {} bytes of input are in {}", input.len(), found.display());
}

/// One test, because the memory of a process is one number.
#[test]
fn no_input_panics_or_takes_memory_that_it_does_not_bring() {
    let rounds = std::env::var("FUZZ_ROUNDS").ok().map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let only = std::env::var("FUZZ_TARGET").ok();
    for (name, target) in targets::TARGETS {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        // The first one starts what lives for the whole process.
        target(&seeds[0].1);
        for (n, (seed, bytes)) in seeds.iter().enumerate() {
            check(name, target, bytes, seed);
            let mut random = Random::from_seed(n as u64);
            for round in 0..rounds {
                let mut input = bytes.clone();
                for _ in 0..=random.below(4) {
                    let other = &seeds[random.below(seeds.len())].1;
                    change(&mut input, other, &mut random);
                }
                check(name, target, &input, &format!("{seed}, round {round}"));
            }
        }
    }
}
