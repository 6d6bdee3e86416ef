//! The verb `calibrate`: agreement of a model with itself and with another one, and the file that `serve` reads.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use inference_worker::model::digest;
use inference_worker::serve::{CONFIDENCE_FILE, Confidence};
use std::fs;
use std::path::Path;
use std::process::Command;
use support::tiny_model;

/// The calibration, once it is held that the digest that was printed is the directory's.
fn calibrate(model: &Path, baseline: &Path, probes: &Path) -> Result<Confidence, String> {
    let before = digest(model).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
        .args(["calibrate", "--model"])
        .arg(model)
        .arg("--baseline")
        .arg(baseline)
        .arg("--probes")
        .arg(probes)
        .output()
        .unwrap();
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned());
    }
    let after = digest(model).unwrap();
    assert_ne!(before, after, "the calibration is part of the model");
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(said.contains(&format!("sha256:{after} now: package it")), "{said}");
    Ok(Confidence::load(model).unwrap())
}

#[test]
fn a_model_agrees_with_itself_and_not_with_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, probes] = ["one", "two", "probes.jsonl"].map(|name| dir.path().join(name));
    for (path, seed) in [(&one, 1), (&two, 2)] {
        fs::create_dir(path).unwrap();
        tiny_model(path, seed);
    }
    let lines: Vec<String> = (0..40).map(|i| format!("{{\"prompt\": \"probe number {i}\"}}")).collect();
    fs::write(&probes, lines.join("\n")).unwrap();
    let own = calibrate(&one, &one, &probes).unwrap();
    // At most 640 positions in 20 bins: a bin of 32 agreements says 33/34.
    assert!(own.of_answer(&[0.0, -1.0, -5.0]).unwrap() > 0.9, "{own}");
    let other = calibrate(&one, &two, &probes).unwrap();
    assert!(other.of_answer(&[-1.0]).unwrap() < 0.5, "{other}");
    assert!(one.join(CONFIDENCE_FILE).exists() && !two.join(CONFIDENCE_FILE).exists());
    fs::write(&probes, "").unwrap();
    assert!(calibrate(&one, &two, &probes).unwrap_err().contains("no prompt"));
}
