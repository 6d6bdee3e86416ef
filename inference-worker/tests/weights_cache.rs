//! Repacked weights in a file: mapped at the next start with the same bits, made anew where the file is anything else.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use inference_worker::kernels::Kernels;
use inference_worker::model::{HeadMode, LoadOptions, Model, SharedWeights, Step, Want, WeightsCache, digest};
use std::fs;
use std::path::{Path, PathBuf};

const FIXTURES: [&str; 5] = ["autobitlinear", "bitlinear", "bitnet-fp16", "llama-tied-bf16", "online-bf16"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn options(model: &Path, dir: &Path) -> LoadOptions {
    let weights_cache = Some(WeightsCache { dir: dir.to_owned(), digest: digest(model).unwrap() });
    LoadOptions { weights_cache, ..LoadOptions::default() }
}

fn logits(model: &Model) -> Vec<u32> {
    let mut cache = model.new_cache(4);
    let mut steps = [Step::new(&mut cache, &[1, 2, 90, 7], Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits.iter().map(|x| x.to_bits()).collect()
}

/// The only finished file of a cache.
fn only_file(dir: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn the_second_load_maps_the_file_and_gives_the_same_bits() {
    for name in FIXTURES {
        for head in [HeadMode::Exact, HeadMode::Screened, HeadMode::Int8] {
            let (model, dir) = (fixture(name), tempfile::tempdir().unwrap());
            let options = LoadOptions { head, ..options(&model, dir.path()) };
            let plain = LoadOptions { weights_cache: None, ..options.clone() };
            let plain = Model::load(&model, &plain).unwrap();
            assert_eq!(plain.weights_file(), None);
            let first = Model::load(&model, &options).unwrap();
            let written = fs::metadata(only_file(dir.path())).unwrap().modified().unwrap();
            let mut second = Model::load(&model, &options).unwrap();
            assert_eq!(second.weights_file(), Some(only_file(dir.path()).as_path()), "{name}");
            assert_eq!(fs::metadata(only_file(dir.path())).unwrap().modified().unwrap(), written, "{name}");
            assert_eq!(logits(&first), logits(&plain), "{name}");
            assert_eq!(logits(&second), logits(&plain), "{name}");
            assert_eq!(second.weight_bytes(), plain.weight_bytes());
            assert_eq!(second.precision(), plain.precision());
            assert_eq!(second.self_test(), Ok(()));
        }
    }
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_made_anew() {
    let (model, dir) = (fixture("autobitlinear"), tempfile::tempdir().unwrap());
    let options = options(&model, dir.path());
    let expected = logits(&Model::load(&model, &options).unwrap());
    let path = only_file(dir.path());
    let good = fs::read(&path).unwrap();
    let portable = LoadOptions { kernels: Some(Kernels::portable()), ..options.clone() };
    let other_kernels = Model::load(&model, &portable).unwrap().weights_file().unwrap().to_owned();
    let other_model = {
        let (model, dir) = (fixture("bitlinear"), tempfile::tempdir().unwrap());
        Model::load(&model, &self::options(&model, dir.path())).unwrap();
        fs::read(only_file(dir.path())).unwrap()
    };
    let changed = |at: usize, by: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= by;
        bytes
    };
    let mut bad: Vec<(&str, Vec<u8>)> = vec![
        ("another model", other_model),
        ("empty", Vec::new()),
        ("half", good[..good.len() / 2].to_vec()),
        ("one byte short", good[..good.len() - 1].to_vec()),
        ("longer", [good.as_slice(), b"x"].concat()),
        ("another version", changed(7, 1)),
        ("a longer header", changed(11, 0x40)),
        ("a changed header", changed(30, 1)),
        ("a changed weight", changed(good.len() / 2, 1)),
        ("a header alone", good[..16].to_vec()),
    ];
    if Kernels::detect() != Kernels::portable() {
        bad.push(("other kernels", fs::read(other_kernels).unwrap()));
    }
    for (what, bytes) in bad {
        assert_ne!(bytes, good, "{what}");
        // Not written over: a mapped file never changes.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        let model = Model::load(&model, &options).unwrap();
        assert_eq!(logits(&model), expected, "{what}");
        assert_eq!(fs::read(&path).unwrap(), good, "{what}: the file is good again");
        assert_eq!(model.weights_file(), Some(path.as_path()), "{what}");
    }
}

#[test]
fn a_directory_that_takes_no_file_costs_the_sharing_and_not_the_start() {
    let (model, dir) = (fixture("autobitlinear"), tempfile::tempdir().unwrap());
    // A file where the directory should be: refused whoever the tests run as.
    let place = dir.path().join("file");
    fs::write(&place, "").unwrap();
    let loaded = Model::load(&model, &options(&model, &place)).unwrap();
    assert_eq!(loaded.weights_file(), None);
    assert_eq!(logits(&loaded), logits(&Model::load(&model, &LoadOptions::default()).unwrap()));
}

#[test]
fn what_a_killed_writer_left_is_removed_after_an_hour() {
    let (model, dir) = (fixture("autobitlinear"), tempfile::tempdir().unwrap());
    let (old, new) = (dir.path().join(".unfinished-a"), dir.path().join(".unfinished-b"));
    let hours = std::time::Duration::from_hours(2);
    fs::File::create(&old).unwrap().set_modified(std::time::SystemTime::now() - hours).unwrap();
    fs::write(&new, "").unwrap();
    Model::load(&model, &options(&model, dir.path())).unwrap();
    assert_eq!((old.exists(), new.exists()), (false, true));
}

#[test]
fn models_of_one_process_hold_equal_matrices_once_and_the_last_one_frees_them() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    support::tiny_model(dirs[0].path(), 1);
    // All but one matrix as in the first; and another model.
    support::damage(dirs[1].path(), 1, "model.layers.1.mlp.down_proj.weight", |x| x * 0.5);
    support::tiny_model(dirs[2].path(), 2);
    let shared = SharedWeights::default();
    let options = LoadOptions { shared: shared.clone(), ..LoadOptions::default() };
    let load = |dir: &tempfile::TempDir| Model::load(dir.path(), &options).unwrap();
    let alone = |dir: &tempfile::TempDir| logits(&Model::load(dir.path(), &LoadOptions::default()).unwrap());
    let (first, second) = (load(&dirs[0]), load(&dirs[1]));
    let (matrix, norms) = (32 * 48 * 4, 4 * 32 * (2 * 2 + 1));
    assert_eq!(Model::weight_bytes_of(&[&first, &second]), first.weight_bytes() + matrix + norms);
    assert_eq!(shared.bytes(), first.weight_bytes() + matrix - norms);
    let third = load(&dirs[2]);
    assert_eq!(
        Model::weight_bytes_of(&[&first, &second, &third]),
        first.weight_bytes() + matrix + norms + third.weight_bytes()
    );
    for (model, dir) in [&first, &second, &third].into_iter().zip(&dirs) {
        assert_eq!(logits(model), alone(dir));
    }
    drop(third);
    drop(first);
    assert_eq!(shared.bytes(), second.weight_bytes() - norms, "what the second one uses is still there");
    assert_eq!(logits(&second), alone(&dirs[1]));
    drop(second);
    assert_eq!(shared.bytes(), 0);
}
