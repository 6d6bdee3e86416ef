use crate::model;
use crate::workshop::WorkshopError;
use crate::workshop::text::documents;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Where training text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// The built-in generator: this many bytes from this seed.
    BuiltIn {
        /// Bytes of text.
        bytes: usize,
        /// Seed.
        seed: u64,
    },
    /// Files: `.jsonl` holds one `{"text": …}` per line, every other one plain text whose documents are separated by empty
    /// lines.
    Files(Vec<PathBuf>),
}

/// Text as ids, cut into what is trained on and what is held out. No `Debug`: this is text.
pub struct Text {
    /// Ids of the training documents, one after the other.
    pub training: Vec<u32>,
    /// Ids of the held-out documents: the last of every twenty.
    pub held_out: Vec<u32>,
    /// SHA-256 over both, so that a run goes on with the text that it began with.
    pub hash: String,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// One document of this many is held out.
const HELD_OUT: usize = 20;

impl Text {
    /// Reads and encodes.
    ///
    /// # Errors
    /// [`WorkshopError::Refused`] names file and line of what is not UTF-8 or not `{"text": …}`; never the text.
    pub fn read(source: &DataSource, tokenizer: &model::Text) -> Result<Self, WorkshopError> {
        let documents = match source {
            DataSource::BuiltIn { bytes, seed } => documents(*seed, *bytes),
            DataSource::Files(paths) => {
                let mut all = Vec::new();
                for path in paths {
                    all.extend(read_file(path)?);
                }
                all
            }
        };
        let mut text = Self { training: Vec::new(), held_out: Vec::new(), hash: String::new() };
        for (number, document) in documents.iter().enumerate() {
            let ids =
                tokenizer.encode(document).map_err(|source| WorkshopError::Prompt { number: number + 1, source })?;
            let to = if number % HELD_OUT == HELD_OUT - 1 { &mut text.held_out } else { &mut text.training };
            to.extend(ids);
        }
        let mut hash = Sha256::new();
        text.training.iter().chain([&u32::MAX]).chain(&text.held_out).for_each(|id| hash.update(id.to_le_bytes()));
        text.hash = model::hex(&hash.finalize());
        Ok(text)
    }

    /// Optimiser steps of so many tokens that see as many as there are to train on: an epoch. Sequences begin at random
    /// places, so an epoch is a measure, not a pass over every token.
    pub fn steps_per_epoch(&self, tokens: usize) -> usize {
        self.training.len().div_ceil(tokens.max(1)).max(1)
    }
}

fn read_file(path: &Path) -> Result<Vec<String>, WorkshopError> {
    let bytes = fs::read(path).map_err(WorkshopError::file("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|b| *b == b'\n').count();
        WorkshopError::Refused(format!("line {line} of {} is not UTF-8: convert the file", path.display()))
    })?;
    if path.extension().is_some_and(|e| e == "jsonl") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines
            .map(|(index, line)| {
                // The parser's own message may quote the text.
                serde_json::from_str::<Line>(line).map(|line| line.text).map_err(|_| {
                    WorkshopError::Refused(format!(
                        "line {} of {} must be {{\"text\": \"…\"}}: correct or remove it",
                        index + 1,
                        path.display()
                    ))
                })
            })
            .collect();
    }
    let text = text.replace("\r\n", "\n");
    Ok(text.split("\n\n").map(str::trim).filter(|d| !d.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_lines_of_json_or_paragraphs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        assert_eq!(read_file(&write("a.txt", b"one\ntwo\r\n\r\nthree\n\n\n")).unwrap(), ["one\ntwo", "three"]);
        assert_eq!(
            read_file(&write("a.jsonl", b"{\"text\": \"x\"}\n\n{\"text\": \"y\", \"n\": 1}")).unwrap(),
            ["x", "y"]
        );
        let bad = read_file(&write("b.jsonl", b"{\"text\": \"x\"}\n{\"SECRET\": 1}")).unwrap_err().to_string();
        assert!(bad.contains("line 2") && !bad.contains("SECRET"), "{bad}");
        let latin = read_file(&write("b.txt", b"ok\nok\nSECRET \xe4\n")).unwrap_err().to_string();
        assert!(latin.contains("line 3") && latin.contains("not UTF-8") && !latin.contains("SECRET"), "{latin}");
    }
}
