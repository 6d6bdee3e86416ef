use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// 200 and a complete, well-formed answer.
    Ok,
    /// Another status.
    Status,
    /// No connection could be made.
    Connect(String),
    /// The connection broke before or in the head of the answer.
    Reset(String),
    /// The body ended early, or a stream without `[DONE]`.
    Truncated(String),
    /// A complete body that is no answer.
    Malformed(String),
    /// Longer than the client waits.
    Timeout,
}

/// One request as the client saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Start, milliseconds since the Unix epoch.
    pub at: i64,
    /// The revision that answered (`x-bitnet-revision`), where a head arrived.
    pub arm: Option<String>,
    /// HTTP status, 0 where no head arrived.
    pub status: u16,
    /// Milliseconds from the start to the end of the body.
    pub latency: f64,
    /// It was a stream.
    pub stream: bool,
    /// What became of it.
    pub outcome: Outcome,
}

impl Record {
    /// Would a user call it failed?
    pub fn failed(&self) -> bool {
        self.outcome != Outcome::Ok
    }
}

/// Writes records as JSON lines.
pub fn write_records(path: &Path, records: &[Record]) -> Result<()> {
    let mut out = BufWriter::new(File::create(path).with_context(|| format!("creating {}", path.display()))?);
    for record in records {
        serde_json::to_writer(&mut out, record)?;
        out.write_all(b"\n")?;
    }
    out.flush().with_context(|| format!("writing {}", path.display()))
}

/// Reads what [`write_records`] wrote.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    BufReader::new(file).lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}
