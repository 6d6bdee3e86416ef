//! How a model wants its tokens to be drawn, where a request does not say: generation_config.json, as vLLM reads it.

use serde::Deserialize;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FILE: &str = "generation_config.json";

/// Whose defaults are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GenerationConfig {
    /// The model's own, where its directory has them.
    #[default]
    Model,
    /// OpenAI's: temperature 1, all tokens.
    None,
}

/// Why the model's defaults cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    /// The file cannot be read.
    #[error("cannot read {}; make it readable, or serve with --generation-config none", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is not a generation configuration; correct it, or serve with --generation-config none", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A number breaks its rule.
    #[error("{}: `{field}` must be {rule}; correct it, or serve with --generation-config none", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

/// Values of fields that a request leaves out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: i64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0 }
    }
}

#[derive(Deserialize)]
struct File {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
}

impl Defaults {
    /// The defaults for the model in `dir`.
    pub(crate) fn load(whose: GenerationConfig, dir: &Path) -> Result<Self, DefaultsError> {
        let none = Self::default();
        if whose == GenerationConfig::None {
            return Ok(none);
        }
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            // A GGUF file has none, and a model need not have one.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(none),
            Err(source) => return Err(DefaultsError::Read { path, source }),
            Ok(bytes) => bytes,
        };
        let file: File = match serde_json::from_slice(&bytes) {
            Ok(file) => file,
            Err(source) => return Err(DefaultsError::Json { path, source }),
        };
        let own = Self {
            temperature: file.temperature.unwrap_or(none.temperature),
            top_p: file.top_p.unwrap_or(none.top_p),
            top_k: file.top_k.unwrap_or(none.top_k),
        };
        for (field, good, rule) in [
            ("temperature", own.temperature >= 0.0, "at least 0"),
            ("top_p", own.top_p > 0.0 && own.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", own.top_k >= -1, "at least 1, or 0 or -1 for all tokens"),
        ] {
            if !good {
                return Err(DefaultsError::Value { path, field, rule });
            }
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_own_defaults_are_taken_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let load = |whose| Defaults::load(whose, dir.path());
        assert_eq!(load(GenerationConfig::Model).unwrap(), Defaults::default());
        let write = |text: &str| fs::write(dir.path().join(FILE), text).unwrap();
        write(r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1]}"#);
        let own = Defaults { temperature: 0.6, top_p: 0.9, top_k: 0 };
        assert_eq!(load(GenerationConfig::Model).unwrap(), own);
        assert_eq!(load(GenerationConfig::None).unwrap(), Defaults::default());
        for (text, named) in [("[]", FILE), (r#"{"top_p": 0}"#, "`top_p`"), (r#"{"temperature": -1}"#, "`temperature`")]
        {
            write(text);
            let error = load(GenerationConfig::Model).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("--generation-config none"), "{error}");
            assert!(load(GenerationConfig::None).is_ok());
        }
    }
}
