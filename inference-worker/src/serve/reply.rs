//! The objects of an answer, as OpenAI clients read them.

use super::follow::{Said, Usage};
use super::openai::{Ask, Kind};
use super::worker::Worker;
use crate::engine::Finish;
use crate::model::Text;
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The fields that all objects of one answer share.
pub(super) struct Reply {
    id: String,
    created: u64,
    model: String,
    kind: Kind,
    prompt_tokens: usize,
    include_usage: bool,
    likelihoods: bool,
    text: Text,
    choices: Vec<Written>,
}

/// What a choice has shown.
#[derive(Clone, Default)]
struct Written {
    /// What comes before the answer, until it has come.
    echo: String,
    text: String,
    /// Characters of the tokens reported so far.
    offset: usize,
    logprobs: Option<Value>,
    finish: Option<Finish>,
}

impl Reply {
    pub(super) fn new(worker: &Worker, ask: &Ask, text: &Text) -> Self {
        let choices = (0..ask.prompts.len() * ask.choices).map(|choice| Written {
            echo: ask.echo.get(choice / ask.choices).cloned().unwrap_or_default(),
            ..Written::default()
        });
        let choices = choices.collect();
        let prefix = if ask.kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: worker.answer_id(prefix),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            model: worker.model_name.clone(),
            kind: ask.kind,
            prompt_tokens: ask.prompts.iter().map(Vec::len).sum(),
            include_usage: ask.include_usage,
            likelihoods: ask.likelihood.is_some(),
            text: text.clone(),
            choices,
        }
    }

    /// Id of the answer.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Choices of the answer.
    pub(super) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Takes a piece for [`Reply::whole`].
    pub(super) fn write(&mut self, choice: usize, text: &str, said: &[Said], finish: Option<Finish>) {
        let new = self.likelihoods.then(|| self.logprobs(choice, said));
        let written = &mut self.choices[choice];
        written.text.push_str(&std::mem::take(&mut written.echo));
        written.text.push_str(text);
        written.finish = finish;
        match (&mut written.logprobs, new) {
            (Some(all), Some(new)) => extend(all, new),
            (none, new) => *none = new,
        }
    }

    /// The whole answer.
    pub(super) fn whole(&mut self, usage: Usage) -> Value {
        let written = std::mem::take(&mut self.choices);
        let choice = |(index, written): (usize, Written)| {
            let reason = written.finish.map(Finish::reason);
            let logprobs = written.logprobs;
            match self.kind {
                Kind::Completion => {
                    json!({"index": index, "text": written.text, "logprobs": logprobs, "finish_reason": reason})
                }
                Kind::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": written.text},
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }),
            }
        };
        let choices: Vec<Value> = written.into_iter().enumerate().map(choice).collect();
        let mut object = self.object(false, &json!(choices));
        object["usage"] = self.usage(usage);
        object
    }

    /// The chunk that opens a choice of a chat's stream.
    pub(super) fn role_chunk(&self, choice: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(choice, &delta, "", None, None))
    }

    /// A chunk of text; with `finish`, the last one of its choice.
    pub(super) fn text_chunk(&mut self, choice: usize, text: &str, said: &[Said], finish: Option<Finish>) -> Value {
        let logprobs = (self.likelihoods && !said.is_empty()).then(|| self.logprobs(choice, said));
        let echoed = std::mem::take(&mut self.choices[choice].echo) + text;
        let text = echoed.as_str();
        let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
        self.chunk(choice, &delta, text, logprobs.as_ref(), finish)
    }

    /// The chunk after the last one, where the client asked for it.
    pub(super) fn usage_chunk(&self, usage: Usage) -> Option<Value> {
        self.include_usage.then(|| {
            let mut object = self.object(true, &json!([]));
            object["usage"] = self.usage(usage);
            object
        })
    }

    fn object(&self, chunk: bool, choices: &Value) -> Value {
        let object = match (self.kind, chunk) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self, Usage { generated, reused }: Usage) -> Value {
        let prompt = self.prompt_tokens;
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": reused},
        })
    }

    fn chunk(
        &self,
        index: usize,
        delta: &Value,
        text: &str,
        logprobs: Option<&Value>,
        finish: Option<Finish>,
    ) -> Value {
        let reason = finish.map(Finish::reason);
        let choice = match self.kind {
            Kind::Completion => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}),
            Kind::Chat => json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}),
        };
        let mut object = self.object(true, &json!([choice]));
        if self.include_usage {
            object["usage"] = Value::Null;
        }
        object
    }

    /// Likelihoods in the form of the endpoint.
    fn logprobs(&mut self, choice: usize, said: &[Said]) -> Value {
        match self.kind {
            Kind::Chat => json!({"content": said.iter().map(|said| self.entry(said)).collect::<Vec<_>>()}),
            Kind::Completion => self.columns(choice, said),
        }
    }

    fn entry(&self, said: &Said) -> Value {
        let top = said.likelihood.top.iter().map(|(id, log)| self.token(*id, *log));
        let mut entry = self.token(said.id, said.likelihood.chosen);
        entry["top_logprobs"] = top.collect();
        entry
    }

    fn token(&self, id: u32, log: f32) -> Value {
        json!({"token": self.spelled(id), "logprob": log, "bytes": self.text.bytes(id)})
    }

    fn columns(&mut self, choice: usize, said: &[Said]) -> Value {
        let mut offset = self.choices[choice].offset;
        let (mut tokens, mut logs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for said in said {
            let text = self.spelled(said.id);
            offsets.push(offset);
            offset += text.chars().count();
            tokens.push(text);
            logs.push(said.likelihood.chosen);
            // The token that was taken is always among them, as at OpenAI and vLLM.
            let mut top = Map::from_iter([(self.spelled(said.id), json!(said.likelihood.chosen))]);
            for (id, log) in &said.likelihood.top {
                // Parts of characters are spelled alike: the likeliest of them has the entry.
                top.entry(self.spelled(*id)).or_insert(json!(log));
            }
            tops.push(top);
        }
        self.choices[choice].offset = offset;
        json!({"tokens": tokens, "token_logprobs": logs, "top_logprobs": tops, "text_offset": offsets})
    }

    fn spelled(&self, id: u32) -> String {
        self.text.decode_all(&[id]).unwrap_or_default()
    }
}

/// Joins the lists of two objects of the same form.
fn extend(all: &mut Value, new: Value) {
    let (Value::Object(all), Value::Object(new)) = (all, new) else { return };
    for (name, new) in new {
        if let (Some(Value::Array(list)), Value::Array(new)) = (all.get_mut(&name), new) {
            list.extend(new);
        }
    }
}
