//! The krew manifest that `krew.sh` makes of a release's archives.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn archive(folder: &Path, name: &str, files: &[&str]) -> String {
    for file in files {
        fs::write(folder.join(file), name).unwrap();
    }
    let path = folder.join(name);
    let made = Command::new("tar").arg("-C").arg(folder).arg("-czf").arg(&path).args(files).status().unwrap();
    assert!(made.success());
    path.display().to_string()
}

fn krew(args: &[&str]) -> Output {
    Command::new("sh").arg(here().join("krew.sh")).args(args).output().unwrap()
}

#[test]
fn the_manifest_names_each_archive_with_its_digest() {
    let folder = std::env::temp_dir().join(format!("krew-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let linux = archive(&folder, "kubectl-bitnet_linux_amd64.tar.gz", &["kubectl-bitnet", "LICENSE"]);
    let mac = archive(&folder, "kubectl-bitnet_darwin_arm64.tar.gz", &["kubectl-bitnet", "LICENSE"]);
    let bare = archive(&folder, "kubectl-bitnet_linux_arm64.tar.gz", &["kubectl-bitnet"]);
    let odd = archive(&folder, "kubectl-bitnet_plan9_amd64.tar.gz", &["kubectl-bitnet", "LICENSE"]);
    let base = "https://r.example/v0.1.0/";
    let made = krew(&["v0.1.0", base, &linux, &mac]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let manifest: Value = serde_yaml::from_slice(&made.stdout).unwrap();
    assert_eq!((&manifest["kind"], &manifest["spec"]["version"]), (&"Plugin".into(), &"v0.1.0".into()));
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    assert_eq!(platforms.len(), 2);
    assert_eq!(platforms[0]["uri"], "https://r.example/v0.1.0/kubectl-bitnet_linux_amd64.tar.gz");
    assert_eq!(platforms[1]["selector"]["matchLabels"]["arch"], "arm64");
    let digest = Command::new("sha256sum").arg(&linux).output().unwrap().stdout;
    let digest = String::from_utf8(digest).unwrap();
    assert_eq!(platforms[0]["sha256"].as_str(), digest.split(' ').next());
    for (args, words) in [
        (vec!["v0.1.0", base, &bare], "holds no LICENSE"),
        (vec!["v0.1.0", base, &odd], "is not called"),
        (vec!["0.1", base, &linux], "like v1.2.3"),
        (vec!["v0.1.0", "http://r.example", &linux], "by https"),
    ] {
        let refused = krew(&args);
        assert!(!refused.status.success(), "{args:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(words), "{args:?}");
    }
    fs::remove_dir_all(&folder).unwrap();
}
