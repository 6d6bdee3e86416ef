//! The documentation as data: its pages, their links and anchors, and the YAML in them, so that tests can hold both to
//! what there is.

use crate::stage::checkout;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// First words of a YAML block whose kinds come with a product that the box has not; its name follows.
pub const ELSEWHERE: &str = "# Not applied by our tests: needs ";
/// First line of a YAML block that holds values of the operator's chart.
pub const VALUES: &str = "# values.yaml";

/// A page of the documentation.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its file, from the repository's root.
    pub path: PathBuf,
    text: String,
}

/// YAML that a reader may copy.
#[derive(Clone, Debug)]
pub struct Block {
    /// File and line of its beginning, for messages.
    pub place: String,
    /// As written.
    pub text: String,
    /// What it is for.
    pub use_: Use,
}

/// What a block of YAML is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Use {
    /// Whole objects that the box's API server must accept.
    Objects(Vec<Value>),
    /// Whole objects of a product that the box has not.
    Elsewhere(Vec<Value>),
    /// Values of the operator's chart.
    Values,
    /// A part of a ModelRollout's spec.
    Fragment(Value),
}

/// Every page: README.md, ARCHITECTURE.md, docs, charts, examples, images, the box.
pub fn pages() -> Result<Vec<Page>> {
    let root = checkout();
    let mut found = Vec::new();
    for start in ["README.md", "ARCHITECTURE.md", "docs", "charts", "examples", "images", "tests/box"] {
        collect(&root.join(start), "md", &mut found)?;
    }
    found.sort();
    found
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            Ok(Page { path: file.strip_prefix(&root)?.to_owned(), text })
        })
        .collect()
}

/// All YAML that a reader may copy: the blocks of the pages, and the files of `examples/`.
pub fn blocks() -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for page in pages()? {
        blocks.extend(page.blocks()?);
    }
    let root = checkout();
    let mut files = Vec::new();
    collect(&root.join("examples"), "yaml", &mut files)?;
    files.sort();
    for file in files {
        let place = file.strip_prefix(&root)?.display().to_string();
        blocks.push(Block::read(place, fs::read_to_string(&file)?)?);
    }
    Ok(blocks)
}

fn collect(path: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path.into());
        }
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        collect(&entry?.path(), extension, found)?;
    }
    Ok(())
}

impl Page {
    /// Targets of its links that stay within the repository, with the line of each.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let line = without_code(line);
            for part in line.split("](").skip(1) {
                let Some((target, _)) = part.split_once(')') else { continue };
                if !target.contains("://") && !target.starts_with("mailto:") {
                    links.push((number, target.to_owned()));
                }
            }
        }
        links
    }

    /// Anchors of its headings, as GitHub and most others make them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for (_, line) in self.prose() {
            let text = line.trim_start_matches('#');
            if text.len() == line.len() || !text.starts_with(' ') {
                continue;
            }
            let anchor: String = text
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect();
            let mut name = anchor.clone();
            let mut count = 0;
            while !anchors.insert(name) {
                count += 1;
                name = format!("{anchor}-{count}");
            }
        }
        anchors
    }

    /// Its lines outside of code blocks, with their numbers.
    fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut code = false;
        self.text.lines().enumerate().filter_map(move |(i, line)| {
            let fence = line.trim_start().starts_with("```");
            code ^= fence;
            (!fence && !code).then_some((i + 1, line))
        })
    }

    /// Its blocks of YAML.
    fn blocks(&self) -> Result<Vec<Block>> {
        let mut blocks = Vec::new();
        let mut open: Option<(usize, String)> = None;
        let mut other = false;
        for (i, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (Some(_), Some(_)) => {
                    if let Some((number, text)) = open.take() {
                        blocks.push(Block::read(format!("{}:{number}", self.path.display()), text)?);
                    }
                }
                (Some((_, text)), None) => {
                    text.push_str(line);
                    text.push('\n');
                }
                (None, Some("yaml")) if !other => open = Some((i + 2, String::new())),
                (None, Some(_)) => other = !other,
                (None, None) => {}
            }
        }
        ensure!(open.is_none() && !other, "{}: a code block has no end", self.path.display());
        Ok(blocks)
    }
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

impl Block {
    fn read(place: String, text: String) -> Result<Self> {
        let first = text.lines().next().unwrap_or_default();
        // A page shows where a digest goes without 64 characters of it.
        let whole = text.replace("sha256:…", &format!("sha256:{}", "0".repeat(64)));
        let documents = serde_yaml::Deserializer::from_str(&whole)
            .map(Value::deserialize)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{place}: this is not YAML"))?;
        let documents: Vec<Value> = documents.into_iter().filter(|value| !value.is_null()).collect();
        let objects = documents.iter().filter(|d| d["apiVersion"].is_string() && d["kind"].is_string()).count();
        let use_ = if first.starts_with(VALUES) {
            ensure!(objects == 0, "{place}: values of a chart are no objects");
            Use::Values
        } else if objects == documents.len() && objects > 0 {
            if first.starts_with(ELSEWHERE) { Use::Elsewhere(documents) } else { Use::Objects(documents) }
        } else {
            ensure!(
                objects == 0 && documents.len() == 1,
                "{place}: neither whole objects, nor `{VALUES}`, nor one part of a ModelRollout's spec"
            );
            Use::Fragment(documents[0].clone())
        };
        Ok(Self { place, text, use_ })
    }
}

/// Groups whose kinds the box serves.
pub fn in_the_box(object: &Value) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    !group.contains('.')
        || group.ends_with(".k8s.io")
        || ["rollouts.bitnet.dev", "gateway.envoyproxy.io"].contains(&group)
}

#[cfg(test)]
mod tests;
