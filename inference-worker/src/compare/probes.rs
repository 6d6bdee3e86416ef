//! The probe file: one prompt per line of JSON.

use crate::model::{ChatMessage, Text, TextError, files};
use bitnet_api::worker::ProbeSet;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// A ConfigMap holds 1 MiB; more than this is no probe file.
const MAX_BYTES: u64 = 4 << 20;

/// Prompts to draw from, as they are in the file.
pub struct Probes {
    /// Hash and size.
    pub set: ProbeSet,
    lines: Vec<Line>,
}

/// `{"prompt": "…"}` or `{"messages": […]}`; an `id` and other fields are for people. No `Debug`: this is text.
#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

/// Why there is no probe set. No variant carries text of a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The worker was started without a probe file.
    #[error("no probe file was given; start the worker with --probes")]
    NotGiven,
    /// It cannot be read.
    #[error("cannot read the probe file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("the probe file {} is larger than {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A line is not a probe.
    #[error(
        "line {line} of the probe file is not a probe: write {{\"prompt\": \"…\"}} or {{\"messages\": […]}}, not both, one object per line"
    )]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// No line has a probe.
    #[error("the probe file has no prompt")]
    Empty,
}

impl Probes {
    /// Reads the file anew each time: a mounted ConfigMap changes under a running worker.
    ///
    /// # Errors
    /// [`ProbeError`]: one bad line refuses the whole file, because a smaller set under the same name would be another
    /// test.
    pub fn read(path: Option<&Path>) -> Result<Self, ProbeError> {
        let path = path.ok_or(ProbeError::NotGiven)?;
        let failed = |source| ProbeError::Read { path: path.to_owned(), source };
        let bytes = files::read(path, MAX_BYTES).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => ProbeError::TooLarge(path.to_owned()),
            _ => failed(source),
        })?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ProbeError> {
        let mut lines = Vec::new();
        for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let bad = ProbeError::Line { line: i + 1 };
            // The parser's own message may quote the prompt.
            let Ok(parsed) = serde_json::from_slice::<Line>(line) else { return Err(bad) };
            match (&parsed.prompt, &parsed.messages) {
                (Some(prompt), None) if !prompt.is_empty() => {}
                (None, Some(messages)) if !messages.is_empty() => {}
                _ => return Err(bad),
            }
            lines.push(parsed);
        }
        if lines.is_empty() {
            return Err(ProbeError::Empty);
        }
        let hash = Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        Ok(Self { set: ProbeSet { hash, size: lines.len() as u32 }, lines })
    }

    /// Number of prompts, at least 1.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Always false: an empty file is refused.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Name of prompt `index` in reports: its `id` if that is a text or a number, else `#` and its place from 1.
    pub fn id(&self, index: usize) -> String {
        match &self.lines[index].id {
            Some(serde_json::Value::String(id)) => id.clone(),
            Some(serde_json::Value::Number(id)) => id.to_string(),
            _ => format!("#{}", index + 1),
        }
    }

    /// Text of prompt `index`, for a person who asked for it: the prompt, or the messages in order.
    pub fn text(&self, index: usize) -> String {
        let line = &self.lines[index];
        let messages = line.messages.iter().flatten().map(|m| format!("{}: {}", m.role, m.content));
        line.prompt.clone().unwrap_or_else(|| messages.collect::<Vec<_>>().join("\n"))
    }

    /// Token ids of prompt `index`, through the chat template for messages.
    pub fn tokens(&self, index: usize, text: &Text) -> Result<Vec<u32>, TextError> {
        let line = &self.lines[index];
        if let Some(prompt) = &line.prompt {
            return text.encode(prompt);
        }
        let messages = line.messages.iter().flatten();
        let messages: Vec<ChatMessage> =
            messages.map(|m| ChatMessage { role: m.role.clone(), content: m.content.clone() }).collect();
        text.encode_chat(&text.chat(&messages, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_hashed() {
        let file = b"{\"id\": 1, \"prompt\": \"a\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n";
        let probes = Probes::parse(file).unwrap();
        assert_eq!(probes.len(), 2);
        assert_eq!(probes.set.size, 2);
        assert_eq!(probes.set.hash.len(), 64);
        assert_eq!((probes.id(0).as_str(), probes.id(1).as_str()), ("1", "#2"));
        assert_eq!((probes.text(0).as_str(), probes.text(1).as_str()), ("a", "user: b"));
        assert_ne!(probes.set.hash, Probes::parse(&file[..25]).unwrap().set.hash);
    }

    #[test]
    fn what_is_no_probe_is_refused_by_line_without_its_text() {
        let bad = [
            "SECRET",
            "{\"prompt\": 5}",
            "{\"prompt\": \"\"}",
            "{}",
            "{\"prompt\": \"SECRET\", \"messages\": []}",
            "{\"messages\": [{\"role\": \"user\"}]}",
            "{\"prompt\": \"SECRET\"",
        ];
        for line in bad {
            let error = Probes::parse(format!("{{\"prompt\": \"ok\"}}\n{line}\n").as_bytes()).err().expect(line);
            assert!(matches!(error, ProbeError::Line { line: 2 }), "{line}: {error}");
            assert!(!format!("{error:?} {error}").contains("SECRET"));
        }
        assert!(matches!(Probes::parse(b" \n\n"), Err(ProbeError::Empty)));
        assert!(matches!(Probes::read(None), Err(ProbeError::NotGiven)));
        assert!(matches!(Probes::read(Some(Path::new("/nowhere/probes"))), Err(ProbeError::Read { .. })));
    }
}
