//! One kube and one k8s-openapi: with two, types of one crate do not fit the other, and nothing says so but a hundred
//! errors elsewhere. `deny.toml` says the same to those who have cargo-deny.

// Helpers of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

#[test]
fn there_is_one_of_each() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap();
    let count = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    for name in ["kube", "kube-core", "kube-client", "kube-runtime", "k8s-openapi", "gateway-api", "schemars", "rustls"]
    {
        assert!(count(name) <= 1, "{} versions of {name}", count(name));
    }
    assert_eq!((count("kube"), count("k8s-openapi")), (1, 1));
    for name in ["openssl-sys", "native-tls"] {
        assert_eq!(count(name), 0, "{name}: TLS is rustls with aws-lc-rs");
    }
}
