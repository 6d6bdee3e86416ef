//! OpenAI's requests: what is understood, what is refused, and what is checked.
//!
//! A field that would change the answer and is not supported is refused by name; fields without influence on it (user,
//! metadata, …) are ignored, as OpenAI clients expect. `model` is accepted as it is: a worker serves one model, and
//! which revision of it answered is in the header and in the id.

use super::error::ApiError;
use crate::engine::{Form, Sampling};
use crate::model::{ChatMessage, Text, TextError};
use serde::Deserialize;
use serde_json::Value;

/// Stop strings of one request and their length in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// OpenAI's default for completions.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Choices of one request.
const MAX_CHOICES: u32 = 16;
/// Most likely tokens that are reported with each token.
const MAX_LIKELIEST: u32 = 20;
/// Ids in `stop_token_ids`.
const MAX_STOP_IDS: usize = 64;

const FORMS: &str = "use `response_format` of type `text`, `json_object` or `json_schema`";
const ONE_PROMPT: &str = "one prompt per request; send several requests, they are batched here";

/// Body of `POST /v1/completions`. No `Debug`, here and below: prompts stay out of logs.
#[derive(Deserialize)]
pub(crate) struct CompletionRequest {
    prompt: Prompt,
    #[serde(flatten)]
    common: Common,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
    logprobs: Option<u32>,
}

/// Body of `POST /v1/chat/completions`.
#[derive(Deserialize)]
pub(crate) struct ChatRequest {
    messages: Vec<Message>,
    #[serde(flatten)]
    common: Common,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Common {
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    min_p: Option<f32>,
    ignore_eos: Option<bool>,
    stop_token_ids: Option<Vec<u32>>,
    repetition_penalty: Option<f32>,
    min_tokens: Option<u32>,
    use_beam_search: Option<bool>,
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
    guided_json: Option<Value>,
    stream_options: Option<StreamOptions>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Body of `POST /tokenize`, as vLLM (`prompt` or `messages`) or llama-server (`content`) takes it.
#[derive(Deserialize)]
pub(crate) struct TokenizeRequest {
    prompt: Option<String>,
    content: Option<String>,
    messages: Option<Vec<Message>>,
    add_special_tokens: Option<bool>,
    add_special: Option<bool>,
    add_generation_prompt: Option<bool>,
}

/// Body of `POST /detokenize`.
#[derive(Deserialize)]
pub(crate) struct DetokenizeRequest {
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Batches(Vec<Vec<u32>>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Which endpoint a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Completion,
    Chat,
}

impl Kind {
    /// The endpoint's path.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Kind::Completion => "/v1/completions",
            Kind::Chat => "/v1/chat/completions",
        }
    }
}

/// A request that can be run: every rule has been checked.
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stops: Vec<String>,
    /// Ids that end the answer beside the model's own, which count unless `ignore_eos`.
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) choices: usize,
    /// Report each token's likelihood and so many of the most likely ones.
    pub(crate) likelihood: Option<usize>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// What the answer must look like.
    pub(crate) form: Option<Form>,
}

/// Limits of the model that a request is checked against.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
}

/// Reads and checks a body. The cost of it is that of the tokenizer.
pub(crate) fn parse(kind: Kind, body: &[u8], text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    match kind {
        Kind::Completion => {
            let request: CompletionRequest = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
            completion(request, text, limits)
        }
        Kind::Chat => {
            let request: ChatRequest = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
            chat(request, text, limits)
        }
    }
}

fn completion(request: CompletionRequest, text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    let CompletionRequest { prompt, common, echo, suffix, best_of, logprobs } = request;
    refuse("echo", echo == Some(true), "the prompt is not echoed; prepend it yourself")?;
    refuse("suffix", suffix.is_some_and(|s| !s.is_empty()), "there is no insertion; leave it out")?;
    let more = best_of.is_some_and(|best| best > common.n.unwrap_or(1));
    refuse("best_of", more, "all choices that are generated are returned; set it to `n`")?;
    let prompt = match prompt {
        Prompt::Text(one) => fitting(&one, text, limits, Text::encode)?,
        Prompt::Tokens(ids) => ids,
        Prompt::Texts(mut many) => match (many.pop(), many.is_empty()) {
            (Some(one), true) => fitting(&one, text, limits, Text::encode)?,
            _ => return Err(ApiError::unsupported("prompt", ONE_PROMPT)),
        },
        Prompt::Batches(mut many) => match (many.pop(), many.is_empty()) {
            (Some(one), true) => one,
            _ => return Err(ApiError::unsupported("prompt", ONE_PROMPT)),
        },
    };
    let wanted = Some(common.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS));
    check(Kind::Completion, prompt, wanted, logprobs, common, limits)
}

fn chat(request: ChatRequest, text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    let ChatRequest { messages, common, max_completion_tokens, logprobs, top_logprobs, tools, functions } = request;
    let wants = logprobs == Some(true);
    if !wants && top_logprobs.is_some_and(|n| n > 0) {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    let logprobs = wants.then_some(top_logprobs.unwrap_or(0));
    refuse("tools", tools.is_some_and(|t| !t.is_empty()), "tools are not called; leave it out")?;
    refuse("functions", functions.is_some_and(|t| !t.is_empty()), "functions are not called; leave it out")?;
    let prompt = fitting(&templated(messages, true, text)?, text, limits, Text::encode_chat)?;
    let wanted = max_completion_tokens.or(common.max_tokens);
    check(Kind::Chat, prompt, wanted, logprobs, common, limits)
}

fn templated(messages: Vec<Message>, add_generation_prompt: bool, text: &Text) -> Result<String, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty; send at least one message"));
    }
    let messages = messages.into_iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    text.chat(&messages, add_generation_prompt).map_err(|error| failed("messages", &error))
}

/// The tokens of a text, unless it is certain that they do not fit: then it is not read.
fn fitting(
    one: &str,
    text: &Text,
    limits: Limits,
    encode: impl Fn(&Text, &str) -> Result<Vec<u32>, TextError>,
) -> Result<Vec<u32>, ApiError> {
    if let Some(most) = text.most_bytes(limits.context)
        && one.len() > most
    {
        return Err(ApiError::too_long(format!(
            "the prompt has {} bytes and the context is {} tokens, which hold at most {most}; shorten the prompt",
            one.len(),
            limits.context
        )));
    }
    encode(text, one).map_err(|error| failed("prompt", &error))
}

/// Token ids of a text or of a chat, as the endpoints of completions would read it.
pub(crate) fn tokenize(body: &[u8], text: &Text) -> Result<Vec<u32>, ApiError> {
    let TokenizeRequest { prompt, content, messages, add_special_tokens, add_special, add_generation_prompt } =
        serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    match (prompt, content, messages) {
        (Some(prompt), None, None) if add_special_tokens.unwrap_or(true) => encode(text.encode(&prompt)),
        (Some(prompt), None, None) => encode(text.encode_chat(&prompt)),
        (None, Some(content), None) if add_special.unwrap_or(false) => encode(text.encode(&content)),
        (None, Some(content), None) => encode(text.encode_chat(&content)),
        (None, None, Some(messages)) => {
            encode(text.encode_chat(&templated(messages, add_generation_prompt.unwrap_or(true), text)?))
        }
        _ => Err(ApiError::invalid("prompt", "send exactly one of `prompt`, `content` and `messages`")),
    }
}

/// Text of token ids.
pub(crate) fn detokenize(body: &[u8], text: &Text, limits: Limits) -> Result<String, ApiError> {
    let DetokenizeRequest { tokens } = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    inside("tokens", &tokens, limits.vocabulary)?;
    text.decode_all(&tokens).map_err(|error| failed("tokens", &error))
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::malformed(format!("the body is not a valid request: {error}"))
}

fn inside(name: &'static str, ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
    let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) else { return Ok(()) };
    Err(ApiError::invalid(name, format!("token id {id} is outside the vocabulary of {vocabulary} ids")))
}

fn plain(message: Message) -> Result<ChatMessage, ApiError> {
    let content = match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => {
            let mut all = String::new();
            for part in parts {
                match part {
                    Part { kind, text: Some(text) } if kind == "text" => all.push_str(&text),
                    _ => {
                        return Err(ApiError::unsupported("messages", "only parts of type `text` can be read"));
                    }
                }
            }
            all
        }
    };
    Ok(ChatMessage { role: message.role, content })
}

fn encode(ids: Result<Vec<u32>, TextError>) -> Result<Vec<u32>, ApiError> {
    ids.map_err(|error| failed("prompt", &error))
}

/// What the client could have sent otherwise is refused; a tokenizer or a template that fails is this server's error.
fn failed(param: &'static str, error: &TextError) -> ApiError {
    match error {
        TextError::TooLong { .. } | TextError::ChatTooLong { .. } => ApiError::too_long(error.to_string()),
        _ if error.is_of_the_request() => ApiError::invalid(param, chain(error)),
        // The library's words may quote the prompt, and are of no use to a client.
        TextError::Tokenizer(_) | TextError::Vocabulary { .. } => {
            ApiError::internal("tokenizer_failed", error.to_string())
        }
        _ => ApiError::internal("template_failed", error.to_string()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn refuse(param: &'static str, refused: bool, why: &str) -> Result<(), ApiError> {
    if refused { Err(ApiError::unsupported(param, format!("`{param}` is not supported: {why}"))) } else { Ok(()) }
}

fn check(
    kind: Kind,
    prompt: Vec<u32>,
    wanted: Option<u32>,
    logprobs: Option<u32>,
    common: Common,
    limits: Limits,
) -> Result<Ask, ApiError> {
    let choices = common.n.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&choices) {
        return Err(ApiError::invalid("n", format!("`n` must be from 1 to {MAX_CHOICES}")));
    }
    if logprobs.is_some_and(|count| count > MAX_LIKELIEST) {
        let name = if kind == Kind::Chat { "top_logprobs" } else { "logprobs" };
        return Err(ApiError::invalid(name, format!("`{name}` must be at most {MAX_LIKELIEST}")));
    }
    refuse("guided_json", common.guided_json.is_some_and(|v| !v.is_null()), FORMS)?;
    let form = form(common.response_format, common.structured_outputs)?;
    if form.is_some() && common.ignore_eos == Some(true) {
        return Err(ApiError::invalid("ignore_eos", "an answer of a form ends where the form ends; leave it out"));
    }
    refuse("use_beam_search", common.use_beam_search == Some(true), "tokens are sampled; leave it out")?;
    refuse("min_tokens", common.min_tokens.is_some_and(|n| n > 0), "set `ignore_eos` for answers of full length")?;
    refuse("repetition_penalty", common.repetition_penalty.is_some_and(|v| v != 1.0), "set it to 1")?;
    let stop_ids = common.stop_token_ids.unwrap_or_default();
    inside("stop_token_ids", &stop_ids, limits.vocabulary)?;
    if stop_ids.len() > MAX_STOP_IDS {
        let message = format!("`stop_token_ids` takes at most {MAX_STOP_IDS} ids");
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    refuse("logit_bias", common.logit_bias.is_some_and(|b| !b.is_empty()), "logits are not biased; leave it out")?;
    for (name, value) in
        [("frequency_penalty", common.frequency_penalty), ("presence_penalty", common.presence_penalty)]
    {
        refuse(name, value.is_some_and(|v| v != 0.0), "there are no penalties; set it to 0")?;
    }
    let stream = common.stream.unwrap_or(false);
    if common.stream_options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream: true`"));
    }
    let max_tokens = length(&prompt, wanted, limits)?;
    Ok(Ask {
        kind,
        prompt,
        max_tokens,
        sampling: Sampling {
            temperature: within("temperature", common.temperature.unwrap_or(1.0), 0.0..=2.0)?,
            top_p: within("top_p", common.top_p.unwrap_or(1.0), 1e-6..=1.0)?,
            top_k: match common.top_k.unwrap_or(0) {
                -1 | 0 => 0,
                k @ 1.. => k as usize,
                _ => return Err(ApiError::invalid("top_k", "`top_k` must be at least 1, or 0 for all tokens")),
            },
            min_p: within("min_p", common.min_p.unwrap_or(0.0), 0.0..=1.0)?,
            seed: common.seed.map(|seed| seed as u64),
        },
        stops: stops(common.stop)?,
        stop_ids,
        ignore_eos: common.ignore_eos == Some(true),
        choices: choices as usize,
        likelihood: logprobs.map(|count| count as usize),
        stream,
        include_usage: common.stream_options.is_some_and(|o| o.include_usage),
        form,
    })
}

/// OpenAI's `response_format`, or vLLM's `structured_outputs` with a schema.
fn form(response_format: Option<Value>, structured_outputs: Option<Value>) -> Result<Option<Form>, ApiError> {
    const NAME: &str = "response_format";
    let structured = structured_outputs.filter(|value| !value.is_null());
    let Some(mut format) = response_format.filter(|value| !value.is_null()) else {
        let Some(mut structured) = structured else { return Ok(None) };
        let only = structured.as_object().is_some_and(|fields| fields.len() == 1 && fields.contains_key("json"));
        refuse("structured_outputs", !only, "only its field `json`, a schema, is known")?;
        return schema("structured_outputs", structured["json"].take()).map(Some);
    };
    if structured.is_some() {
        return Err(ApiError::invalid(
            "structured_outputs",
            "send `response_format` or `structured_outputs`, not both",
        ));
    }
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Form::Object)),
        Some("json_schema") => match format.get_mut("json_schema").and_then(|named| named.get_mut("schema")) {
            Some(value) => schema(NAME, value.take()).map(Some),
            None => Err(ApiError::invalid(NAME, "`json_schema` needs its field `schema`, an object of JSON Schema")),
        },
        _ => Err(ApiError::unsupported(NAME, format!("`{NAME}` is not supported: {FORMS}"))),
    }
}

fn schema(param: &'static str, value: Value) -> Result<Form, ApiError> {
    if value.is_object() { Ok(Form::Schema(value)) } else { Err(ApiError::invalid(param, "a schema is an object")) }
}

/// Tokens to generate at most: as asked, or for a chat without a wish all that fit.
fn length(prompt: &[u32], wanted: Option<u32>, limits: Limits) -> Result<usize, ApiError> {
    let Limits { vocabulary, context } = limits;
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "the prompt has no token; send at least one"));
    }
    inside("prompt", prompt, vocabulary)?;
    let room = context.saturating_sub(prompt.len());
    if room == 0 {
        let tokens = prompt.len();
        return Err(ApiError::too_long(format!(
            "the prompt has {tokens} tokens and the context is {context}, which must hold at least one token of the \
             answer, too; shorten the prompt"
        )));
    }
    match wanted.map(|n| n as usize) {
        Some(0) => Err(ApiError::invalid("max_tokens", "`max_tokens` must be at least 1")),
        Some(n) if n > room => Err(ApiError::too_long(format!(
            "the prompt has {} tokens, `max_tokens` is {n} and the context is {context}; ask for at most {room}",
            prompt.len()
        ))),
        Some(n) => Ok(n),
        None => Ok(room),
    }
}

fn within(name: &'static str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<f32, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (range.start(), range.end());
    Err(ApiError::invalid(name, format!("`{name}` must be from {low} to {high}")))
}

fn stops(stop: Option<OneOrMany>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    };
    if stops.len() > MAX_STOPS || stops.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        let message = format!("`stop` takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stops)
}
