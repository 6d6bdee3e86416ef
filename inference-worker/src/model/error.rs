//! What can go wrong while a model directory is read or run. Each refusal names the place, the rule and the remedy.

use std::path::PathBuf;

/// A model directory that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or unreadable.
    #[error("cannot read {}; {remedy}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What to do about it.
        remedy: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file does not parse, or a field has another type than the format says.
    #[error("{} is not a valid {what}; fetch the file again or correct the named field", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the file should be.
        what: &'static str,
        /// Where and why parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A value of config.json, or of a file that belongs to it, breaks a rule.
    #[error("{}: `{field}` {problem}; {remedy}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, or dotted path of the field.
        field: String,
        /// The rule and what was found instead.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A weight file's header is malformed, or the file is shorter or longer than its header says.
    #[error("{} is not a whole safetensors file: header and length must agree; fetch the file again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the header check found.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A GGUF file's structure is broken, or there are several.
    #[error("{} {problem}", path.display())]
    Gguf {
        /// The file, or the directory.
        path: PathBuf,
        /// Rule, finding and remedy.
        problem: String,
    },
    /// The operating system gave no threads for the forward pass.
    #[error("the threads of the forward pass did not start; ask for fewer threads, or raise the limit of processes")]
    Threads(#[source] std::io::Error),
    /// A tensor is missing, superfluous, or not what the configuration asks for.
    #[error("{}: tensor `{tensor}` {fault}", path.display())]
    Tensor {
        /// The file that holds the tensor, or the directory where none does.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Rule, finding and remedy.
        fault: TensorFault,
    },
    /// tokenizer.json cannot be used.
    #[error("{} is not a usable tokenizer; export it with the `tokenizers` library (version 0.13 or later)", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The chat template does not compile.
    #[error("{}: the chat template does not compile; correct it or remove it to serve /v1/completions only", path.display())]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// The template engine's answer.
        #[source]
        source: minijinja::Error,
    },
    /// The chat template fails on a chat that every model answers.
    #[error("{}: the chat template fails on a plain chat; correct it or remove it to serve /v1/completions only", path.display())]
    Chat {
        /// The file that holds the template.
        path: PathBuf,
        /// How it fails.
        #[source]
        source: TextError,
    },
}

/// Why one tensor was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorFault {
    /// No weight file has it.
    #[error("is missing: the architecture of config.json needs it; check that all weight files are there")]
    Missing,
    /// The index names a file that does not hold it.
    #[error("is listed for this file by model.safetensors.index.json but is not in it; fetch both files again")]
    NotInShard,
    /// Two weight files hold it.
    #[error("is also in {}; remove the stale weight file", .0.display())]
    Twice(PathBuf),
    /// Nothing in the architecture uses it.
    #[error(
        "is not part of the architecture of config.json, so the result would be wrong without a sign; convert the checkpoint to a supported architecture"
    )]
    Unexpected,
    /// Rows and columns differ.
    #[error("must have shape {expected:?} by config.json but has {found:?}; config.json and weights are of two models")]
    Shape {
        /// Shape by configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The element type does not fit.
    #[error("must be {expected} but is {found}; {remedy}")]
    Dtype {
        /// What the loader takes.
        expected: &'static str,
        /// What the file says.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A 2-bit code 3, which no ternary weight has.
    #[error(
        "holds the 2-bit code 3 at row {row}, column {column}: packed ternary weights are 0, 1 or 2 (weight + 1); the file is damaged or packed in another order, convert it again"
    )]
    Code {
        /// Logical row (output).
        row: usize,
        /// Column (input).
        column: usize,
    },
    /// A weight scale that is not a finite number above 0.
    #[error("must be a finite number above 0 but is {0}; convert the checkpoint again")]
    Scale(f32),
    /// More inputs than sums of 32 bits allow.
    #[error("may have {most} columns at most but has {found}; convert the checkpoint with this layer ternary")]
    Columns {
        /// Most columns.
        most: usize,
        /// Columns by configuration.
        found: usize,
    },
    /// `tie_word_embeddings` is true but a different head is stored.
    #[error(
        "differs from model.embed_tokens.weight although tie_word_embeddings is true; set it to false or remove the tensor"
    )]
    TiedButDifferent,
}

/// Why a batch was not run. The caches are as they were before the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// A token id outside the vocabulary.
    #[error("step {step}: token {token} is outside the vocabulary of {vocab_size} ids")]
    Token {
        /// Index of the step.
        step: usize,
        /// The id.
        token: u32,
        /// Ids run from 0 to one below this.
        vocab_size: usize,
    },
    /// More tokens than the cache has room for.
    #[error("step {step}: {len} tokens are cached and {tokens} more do not fit the capacity of {capacity}")]
    Capacity {
        /// Index of the step.
        step: usize,
        /// Tokens in the cache.
        len: usize,
        /// Tokens to append.
        tokens: usize,
        /// Room in the cache.
        capacity: usize,
    },
    /// A wanted position outside the step's tokens.
    #[error("step {step}: position {position} was asked for but the step has {tokens} tokens")]
    Position {
        /// Index of the step.
        step: usize,
        /// Index into the step's tokens.
        position: u32,
        /// Number of tokens in the step.
        tokens: usize,
    },
    /// The cache was made by a model of another shape.
    #[error("step {step}: the cache was made by a model of another shape; make it with this model's new_cache")]
    Cache {
        /// Index of the step.
        step: usize,
    },
}

/// Why text could not be encoded, decoded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer refused.
    #[error("the tokenizer failed")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model directory has no chat template.
    #[error("this model has no chat template: use /v1/completions, or add chat_template.jinja to the model directory")]
    NoTemplate,
    /// The chat template raised an error, for example because it takes no system message.
    #[error("the model's chat template refused these messages")]
    Refused(#[source] minijinja::Error),
    /// The chat template failed.
    #[error("the model's chat template failed")]
    Template(#[source] minijinja::Error),
    /// The chat template made too much of the messages.
    #[error("the model's chat template wrote more than {most} bytes")]
    Rendered {
        /// Most bytes.
        most: usize,
    },
    /// The operating system gave no thread for the chat template.
    #[error("the thread of the chat template did not start")]
    Thread(#[source] std::io::Error),
    /// An example of some words took too long.
    #[error("it did not end within {limit:?} on some words")]
    Late {
        /// The time that it had.
        limit: std::time::Duration,
    },
    /// More messages than a template may be run on.
    #[error("the chat has {messages} messages of {bytes} bytes together; send fewer or shorter ones")]
    ChatTooLong {
        /// Messages.
        messages: usize,
        /// Bytes of their texts.
        bytes: usize,
    },
    /// More text than the tokenizer may be given.
    #[error("the text has {bytes} bytes; this model's tokenizer is given at most {most}")]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Most bytes.
        most: usize,
    },
    /// The tokenizer gave an id that the model does not know.
    #[error("the tokenizer gave the id {id}, but the model has {rows} ids")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Ids run from 0 to one below this.
        rows: usize,
    },
}

impl TextError {
    /// Whether another request could have been answered: the fault is not the model's.
    pub fn is_of_the_request(&self) -> bool {
        matches!(self, Self::NoTemplate | Self::Refused(_) | Self::ChatTooLong { .. } | Self::TooLong { .. })
    }
}
