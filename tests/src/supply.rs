//! What the programs are made of: dependencies from the lock file, as a bill of materials and as a list of licences.

use crate::stage::checkout;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// Target whose dependencies are listed.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A package that is linked into a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SPDX expression, as its author wrote it.
    pub licence: String,
    /// Where it comes from: a registry, or nothing for a package of this workspace.
    pub source: Option<String>,
    /// Names and versions of what it needs.
    needs: BTreeSet<String>,
}

impl Part {
    /// Package URL, for example `pkg:cargo/serde@1.0.0`.
    pub fn url(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for what is linked; `dev` and `build` for what is not.
    kind: Option<String>,
}

/// The package of the workspace that makes a program, and everything that is linked into it, the program first.
pub fn parts(package: &str) -> Result<Vec<Part>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(checkout())
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET])
        .output()
        .context("running cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let packages: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
    let root = metadata.packages.iter().find(|p| p.name == package && p.source.is_none());
    let root = root.with_context(|| format!("the workspace has no package {package}"))?;
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root.id.as_str()]);
    let mut next = vec![root.id.as_str()];
    while let Some(id) = next.pop() {
        let (package, node) =
            (packages.get(id).context("a package is missing")?, nodes.get(id).context("a node is missing")?);
        let linked = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let mut needs = BTreeSet::new();
        for dependency in node.deps.iter().filter(linked) {
            let needed = packages.get(dependency.pkg.as_str()).context("a dependency is missing")?;
            needs.insert(format!("pkg:cargo/{}@{}", needed.name, needed.version));
            if seen.insert(&dependency.pkg) {
                next.push(&dependency.pkg);
            }
        }
        found.push(Part {
            name: package.name.clone(),
            version: package.version.clone(),
            licence: package.license.clone().unwrap_or_default().replace('/', " OR "),
            source: package.source.clone(),
            needs,
        });
    }
    let first = found.remove(0);
    found.sort();
    found.insert(0, first);
    Ok(found)
}

/// A CycloneDX 1.6 bill of materials. It holds no time and no serial number: the same lock file gives the same bytes.
pub fn cyclonedx(parts: &[Part]) -> Result<Value> {
    let (program, rest) = parts.split_first().context("a program without parts")?;
    let component = |part: &Part, kind: &str| {
        json!({
            "type": kind, "name": part.name, "version": part.version, "bom-ref": part.url(), "purl": part.url(),
            "licenses": [{"expression": part.licence}],
        })
    };
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": component(program, "application")},
        "components": rest.iter().map(|part| component(part, "library")).collect::<Vec<_>>(),
        "dependencies": parts.iter().map(|part| json!({"ref": part.url(), "dependsOn": part.needs})).collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PROGRAMS: [&str; 3] = ["bitnet-operator", "inference-worker", "kubectl-bitnet"];

    /// Lists of strings in `deny.toml` under a table and a key.
    fn allowed() -> BTreeSet<String> {
        let text = fs::read_to_string(checkout().join("deny.toml")).unwrap();
        let block = text.split("\nallow = [").nth(1).unwrap().split(']').next().unwrap();
        block.lines().filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
    }

    #[test]
    fn every_licence_and_source_is_allowed() {
        let allowed = allowed();
        assert!(allowed.contains("MIT") && allowed.contains("Apache-2.0 WITH LLVM-exception"), "{allowed:?}");
        let ok = |requirement: &spdx::LicenseReq| allowed.contains(&requirement.to_string());
        for program in PROGRAMS {
            for part in parts(program).unwrap() {
                let registry = part
                    .source
                    .as_deref()
                    .is_none_or(|source| source.starts_with("registry+https://github.com/rust-lang/crates.io-index"));
                assert!(registry, "{program}: {} comes from {:?}", part.name, part.source);
                let expression = spdx::Expression::parse(&part.licence)
                    .unwrap_or_else(|error| panic!("{program}: {} has licence {:?}: {error}", part.name, part.licence));
                assert!(expression.evaluate(ok), "{program}: {} {} is under {}", part.name, part.version, part.licence);
            }
        }
        let none = spdx::Expression::parse("GPL-3.0-only AND MIT").unwrap();
        assert!(!none.evaluate(ok), "the test can fail");
    }

    #[test]
    fn the_bill_names_what_is_linked_and_nothing_else() {
        let parts = parts("bitnet-operator").unwrap();
        let bill = cyclonedx(&parts).unwrap();
        assert_eq!(bill["metadata"]["component"]["name"], "bitnet-operator");
        let named = |name: &str| bill["components"].as_array().unwrap().iter().any(|c| c["name"] == name);
        for linked in ["bitnet-core", "kube", "rustls", "tokio"] {
            assert!(named(linked), "{linked} is linked");
        }
        for other in ["mlua", "insta", "proptest", "candle-core", "cc"] {
            assert!(!named(other), "{other} is not");
        }
        let references: BTreeSet<_> = parts.iter().map(Part::url).collect();
        assert_eq!(references.len(), parts.len(), "every part is named once");
        for part in &parts {
            assert!(part.needs.iter().all(|need| references.contains(need)), "{} needs what is not listed", part.name);
        }
        assert_eq!(
            bill,
            cyclonedx(&super::parts("bitnet-operator").unwrap()).unwrap(),
            "the same lock file, the same bill"
        );
    }
}
