//! OpenAI's requests: what is understood, what is refused, and what is checked.
//!
//! A field that would change the answer and is not supported is refused by name (`unsupported`); fields without influence
//! on it (user, metadata, …) are ignored, as OpenAI clients expect. `model` is accepted as it is: a worker serves one
//! model, and which revision of it answered is in the header and in the id.

use super::defaults::Defaults;
use super::error::{ApiError, chain};
use super::fields::{Fields, Prompts, Strings};
use super::{form, messages, unsupported};
use crate::engine::{Form, Processors, Sampling};
use crate::model::{Text, TextError};
use serde_json::{Map, Value};

/// Stop strings of one request and their length in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// OpenAI's default for completions.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Choices of one prompt.
const MAX_CHOICES: u32 = 16;
/// Most likely tokens that are reported with each token.
const MAX_LIKELIEST: u32 = 20;
/// Ids in `stop_token_ids`.
const MAX_STOP_IDS: usize = 64;
/// Tokens in `logit_bias`, and how far each is moved.
const MAX_BIASED: usize = 1024;
const MAX_BIAS: f32 = 100.0;

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
    /// At least one.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Texts of the prompts that the answers begin with, where that is asked for.
    pub(crate) echo: Vec<String>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) processors: Option<Processors>,
    pub(crate) stops: Stopping,
    /// Special tokens are written out.
    pub(crate) special: bool,
    /// Of each prompt.
    pub(crate) choices: usize,
    /// Report each token's likelihood and so many of the most likely ones.
    pub(crate) likelihood: Option<usize>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// What the answer must look like.
    pub(crate) form: Option<Form>,
}

/// What ends an answer.
pub(crate) struct Stopping {
    /// Ids beside the model's own, which count unless `ignore_eos`.
    pub(crate) ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) strings: Vec<String>,
    /// The string that ended it is part of the answer.
    pub(crate) include: bool,
    /// Tokens in which none is looked for.
    pub(crate) min_tokens: usize,
}

/// Limits of the model that a request is checked against.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    /// What a request that does not say it is taken to ask for.
    pub(crate) defaults: Defaults,
}

/// Reads and checks a body. The cost of it is that of the tokenizer.
pub(crate) fn parse(kind: Kind, body: &[u8], text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    let mut fields = Fields::of(body)?;
    match kind {
        Kind::Completion => completion(&mut fields, text, limits),
        Kind::Chat => chat(&mut fields, text, limits),
    }
}

fn completion(fields: &mut Fields, text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    let echo = fields.take("echo")? == Some(true);
    let best_of: Option<u32> = fields.take("best_of")?;
    let likelihood = likeliest("logprobs", fields.take("logprobs")?)?;
    let special = fields.take("add_special_tokens")?.unwrap_or(true);
    let prompts = match fields.need("prompt")? {
        Prompts::Texts(texts) => {
            let encode = if special { Text::encode } else { Text::encode_chat };
            texts.iter().map(|one| fitting(one, text, limits, encode)).collect::<Result<Vec<_>, _>>()?
        }
        Prompts::Tokens(prompts) => prompts,
    };
    let wanted = Some(fields.take("max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
    let ask = check(Kind::Completion, prompts, wanted, likelihood, fields, limits)?;
    if best_of.is_some_and(|best| best as usize > ask.choices) {
        let message = "`best_of` is not supported: all choices that are generated are returned; set it to `n`";
        return Err(ApiError::unsupported("best_of", message));
    }
    if !echo {
        return Ok(ask);
    }
    if likelihood.is_some() {
        let message = "`echo` is not supported with `logprobs`: likelihoods are those of the answer; leave one out";
        return Err(ApiError::unsupported("echo", message));
    }
    let echo = ask.prompts.iter().map(|prompt| encoded(text.decode(prompt))).collect::<Result<_, _>>()?;
    Ok(Ask { echo, ..ask })
}

fn chat(fields: &mut Fields, text: &Text, limits: Limits) -> Result<Ask, ApiError> {
    let wants = fields.take("logprobs")? == Some(true);
    let likelihood = likeliest("top_logprobs", fields.take("top_logprobs")?)?;
    if !wants && likelihood.is_some_and(|n| n > 0) {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`; send both or neither"));
    }
    let likelihood = wants.then_some(likelihood.unwrap_or(0));
    let (opens, special) = (fields.take("add_generation_prompt")?, fields.take("add_special_tokens")?);
    let messages = fields.need("messages")?;
    // Before the template: it would answer what is not supported in its own words.
    unsupported::refuse(fields.rest())?;
    let prompt = messages::encode(messages, opens.unwrap_or(true), special.unwrap_or(false), text, Some(limits))?;
    let wanted = fields.take("max_completion_tokens")?;
    let wanted = fields.take("max_tokens")?.filter(|_| wanted.is_none()).or(wanted);
    check(Kind::Chat, vec![prompt], wanted, likelihood, fields, limits)
}

/// Token ids of a text or of a chat, as the endpoints of completions would read it; in the forms of vLLM (`prompt` or
/// `messages`) and of llama-server (`content`).
pub(crate) fn tokenize(body: &[u8], text: &Text) -> Result<Vec<u32>, ApiError> {
    let mut fields = Fields::of(body)?;
    let (special, ours): (Option<bool>, Option<bool>) =
        (fields.take("add_special_tokens")?, fields.take("add_special")?);
    let opens = fields.take("add_generation_prompt")?.unwrap_or(true);
    let prompt: Option<String> = fields.take("prompt")?;
    let content: Option<String> = fields.take("content")?;
    match (prompt, content, fields.take("messages")?) {
        (Some(prompt), None, None) if special.unwrap_or(true) => encoded(text.encode(&prompt)),
        (Some(prompt), None, None) => encoded(text.encode_chat(&prompt)),
        (None, Some(content), None) if ours.unwrap_or(false) => encoded(text.encode(&content)),
        (None, Some(content), None) => encoded(text.encode_chat(&content)),
        (None, None, Some(messages)) => messages::encode(messages, opens, special.unwrap_or(false), text, None),
        _ => Err(ApiError::invalid("prompt", "send exactly one of `prompt`, `content` and `messages`")),
    }
}

/// Text of token ids.
pub(crate) fn detokenize(body: &[u8], text: &Text, limits: Limits) -> Result<String, ApiError> {
    let tokens: Vec<u32> = Fields::of(body)?.need("tokens")?;
    inside("tokens", &tokens, limits.vocabulary)?;
    text.decode_all(&tokens).map_err(|error| failed("tokens", &error))
}

fn inside(name: &'static str, ids: &[u32], vocabulary: usize) -> Result<(), ApiError> {
    let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) else { return Ok(()) };
    let message = format!("`{name}` has the token id {id}, outside the vocabulary of {vocabulary} ids; correct it");
    Err(ApiError::invalid(name, message))
}

fn encoded<T>(done: Result<T, TextError>) -> Result<T, ApiError> {
    done.map_err(|error| failed("prompt", &error))
}

/// The tokens of a text, unless it is certain that they do not fit: then it is not read.
pub(super) fn fitting(
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

/// What the client could have sent otherwise is refused; a tokenizer or a template that fails is this server's error.
pub(super) fn failed(param: &'static str, error: &TextError) -> ApiError {
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

fn likeliest(name: &'static str, count: Option<u32>) -> Result<Option<usize>, ApiError> {
    match count {
        Some(count) if count > MAX_LIKELIEST => {
            Err(ApiError::invalid(name, format!("`{name}` must be at most {MAX_LIKELIEST}; ask for fewer")))
        }
        count => Ok(count.map(|count| count as usize)),
    }
}

fn check(
    kind: Kind,
    prompts: Vec<Vec<u32>>,
    wanted: Option<u32>,
    likelihood: Option<usize>,
    fields: &mut Fields,
    limits: Limits,
) -> Result<Ask, ApiError> {
    let choices = fields.take::<u32>("n")?.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&choices) {
        return Err(ApiError::invalid(
            "n",
            format!("`n` must be from 1 to {MAX_CHOICES}; send several requests for more"),
        ));
    }
    let form = form::take(fields)?;
    let mut max_tokens = usize::MAX;
    for prompt in &prompts {
        max_tokens = max_tokens.min(length(prompt, wanted, limits)?);
    }
    let processors = processors(fields, max_tokens, limits.vocabulary)?;
    let stops = stops(fields, processors.min_tokens, limits.vocabulary)?;
    if form.is_some() && (stops.ignore_eos || stops.min_tokens > 0) {
        let name = if stops.ignore_eos { "ignore_eos" } else { "min_tokens" };
        let message = format!("`{name}` contradicts a form: such an answer ends where the form ends; leave it out");
        return Err(ApiError::invalid(name, message));
    }
    let stream = fields.take("stream")?.unwrap_or(false);
    let options: Option<Map<String, Value>> = fields.take("stream_options")?;
    if options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream: true`; send both or neither"));
    }
    let include_usage = options.is_some_and(|options| options.get("include_usage") == Some(&Value::Bool(true)));
    let special = fields.take("skip_special_tokens")? == Some(false);
    let sampling = sampling(fields, limits.defaults)?;
    unsupported::refuse(fields.rest())?;
    Ok(Ask {
        kind,
        prompts,
        echo: Vec::new(),
        max_tokens,
        sampling,
        processors: Some(processors).filter(|processors| *processors != Processors::default()),
        stops,
        special,
        choices: choices as usize,
        likelihood,
        stream,
        include_usage,
        form,
    })
}

fn sampling(fields: &mut Fields, defaults: Defaults) -> Result<Sampling, ApiError> {
    // Sampled and refused as by vLLM.
    Ok(Sampling {
        temperature: within(fields, "temperature", defaults.temperature, "at least 0", |v| v >= 0.0)?,
        top_p: within(fields, "top_p", defaults.top_p, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?,
        top_k: match fields.take::<i64>("top_k")?.unwrap_or(defaults.top_k) {
            -1 | 0 => 0,
            k @ 1.. => k as usize,
            _ => {
                return Err(ApiError::invalid(
                    "top_k",
                    "`top_k` must be at least 1, or 0 or -1 for all tokens; correct it",
                ));
            }
        },
        min_p: within(fields, "min_p", 0.0, "from 0 to 1", |v| (0.0..=1.0).contains(&v))?,
        seed: fields.take::<i64>("seed")?.map(|seed| seed as u64),
    })
}

fn processors(fields: &mut Fields, max_tokens: usize, vocabulary: usize) -> Result<Processors, ApiError> {
    const OPENAIS: &str = "from -2 to 2";
    let openais = |v: f32| (-2.0..=2.0).contains(&v);
    let min_tokens = fields.take::<u32>("min_tokens")?.unwrap_or(0) as usize;
    if min_tokens > max_tokens {
        let message =
            format!("`min_tokens` is {min_tokens} and the answer has at most {max_tokens} tokens; ask for fewer");
        return Err(ApiError::invalid("min_tokens", message));
    }
    Ok(Processors {
        bias: bias(fields, vocabulary)?,
        repetition_penalty: within(fields, "repetition_penalty", 1.0, "above 0", |v| v > 0.0)?,
        frequency_penalty: within(fields, "frequency_penalty", 0.0, OPENAIS, openais)?,
        presence_penalty: within(fields, "presence_penalty", 0.0, OPENAIS, openais)?,
        min_tokens,
    })
}

fn bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let biases: Map<String, Value> = fields.take(NAME)?.unwrap_or_default();
    let wrong = || {
        let rule = format!("token ids of the model with numbers from -{MAX_BIAS} to {MAX_BIAS}, at most {MAX_BIASED}");
        ApiError::invalid(NAME, format!("`{NAME}` must have {rule}; correct it or leave it out"))
    };
    if biases.len() > MAX_BIASED {
        return Err(wrong());
    }
    let mut bias = Vec::with_capacity(biases.len());
    for (token, value) in biases {
        let token = token.parse().ok().filter(|token| (*token as usize) < vocabulary).ok_or_else(wrong)?;
        let value = value.as_f64().map(|v| v as f32).filter(|v| v.abs() <= MAX_BIAS).ok_or_else(wrong)?;
        bias.push((token, value));
    }
    Ok(bias)
}

/// Tokens to generate at most: as asked, or for a chat without a wish all that fit.
fn length(prompt: &[u32], wanted: Option<u32>, limits: Limits) -> Result<usize, ApiError> {
    let Limits { vocabulary, context, .. } = limits;
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
        Some(0) => Err(ApiError::invalid("max_tokens", "`max_tokens` must be at least 1; correct it")),
        Some(n) if n > room => Err(ApiError::too_long(format!(
            "the prompt has {} tokens, `max_tokens` is {n} and the context is {context}; ask for at most {room}",
            prompt.len()
        ))),
        Some(n) => Ok(n),
        None => Ok(room),
    }
}

fn within(
    fields: &mut Fields,
    name: &'static str,
    default: f32,
    rule: &str,
    good: impl Fn(f32) -> bool,
) -> Result<f32, ApiError> {
    let value = fields.take(name)?.unwrap_or(default);
    if value.is_finite() && good(value) {
        return Ok(value);
    }
    Err(ApiError::invalid(name, format!("`{name}` must be {rule}; correct it or leave it out")))
}

fn stops(fields: &mut Fields, min_tokens: usize, vocabulary: usize) -> Result<Stopping, ApiError> {
    const INCLUDE: &str = "include_stop_str_in_output";
    let strings = fields.take::<Strings>("stop")?.map_or_else(Vec::new, |Strings(strings)| strings);
    if strings.len() > MAX_STOPS || strings.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        let message = format!("`stop` takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes; correct it");
        return Err(ApiError::invalid("stop", message));
    }
    let ids: Vec<u32> = fields.take("stop_token_ids")?.unwrap_or_default();
    inside("stop_token_ids", &ids, vocabulary)?;
    if ids.len() > MAX_STOP_IDS {
        let message = format!("`stop_token_ids` takes at most {MAX_STOP_IDS} ids; leave some out");
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    let include = fields.take(INCLUDE)? == Some(true);
    if include && !ids.is_empty() {
        let message = format!("`{INCLUDE}` is not supported with `stop_token_ids`: those are not shown; leave one out");
        return Err(ApiError::unsupported(INCLUDE, message));
    }
    let ignore_eos = fields.take("ignore_eos")? == Some(true);
    Ok(Stopping { ids, ignore_eos, strings, include, min_tokens })
}
