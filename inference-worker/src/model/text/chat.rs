//! The chat template: compiled and rendered within bounds, because it is a program that came with the model.
//!
//! Fuel bounds its steps and the data it makes. Depth is bounded by neither the language nor the library: expressions
//! nest with each byte of the source, values with each step. So both run on a thread of their own whose stack is as
//! large as the source, or the fuel, can make them deep. It is address space, and becomes memory only where it is used.

use super::{ChatMessage, TextError};
use crate::contained::contained;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, escape_formatter, filters};
use std::collections::BTreeMap;
use std::io;
use std::thread;

/// Bytes of a template's source; those of known models have at most 30 KB.
pub(super) const MAX_SOURCE: usize = 64 << 10;
/// Fuel of any chat, of each message, and of each so many bytes of text. A step costs one, and so do 64 bytes that are
/// made: the templates of known models take some tens of steps per message and copy its text some times.
const FUEL: u64 = 50_000;
const FUEL_PER_MESSAGE: u64 = 500;
const BYTES_PER_FUEL: u64 = 8;
/// Most fuel: about 64 MB of data. It is what some 1,600 messages get; longer chats are refused.
const MAX_FUEL: u64 = 1_000_000;
/// Bytes of a rendered chat; a context holds less.
const MAX_RENDERED: usize = 4 << 20;
/// Stack of whatever is not deep.
const FLAT_STACK: usize = 2 << 20;
/// Stack of a byte of the source: a sign takes 250 bytes, and nothing nests by less than a byte.
const STACK_PER_BYTE: usize = 512;
/// Stack of a unit of fuel: a list in a list takes 430 bytes where it is written or compared, and its making more than a
/// unit of fuel.
const STACK_PER_FUEL: usize = 1 << 10;
/// Depth and number of values that are written as one text.
const MAX_DEPTH: usize = 64;
const MAX_VALUES: usize = 100_000;
const NAME: &str = "chat";

/// A compiled template.
pub(super) struct Template {
    environment: Environment<'static>,
}

/// Marks the error that a template raises itself.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Raised;

impl Template {
    /// Compiles `source`, of at most [`MAX_SOURCE`] bytes.
    pub(super) fn compile(source: String) -> Result<Self, minijinja::Error> {
        let stack = FLAT_STACK + source.len() * STACK_PER_BYTE;
        let broken = |detail: String| minijinja::Error::new(ErrorKind::SyntaxError, detail);
        let compiled = deep(stack, || environment(source)).map_err(|error| broken(error.to_string()))?;
        Ok(Self { environment: compiled? })
    }

    /// The prompt of a chat.
    pub(super) fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        special: &BTreeMap<&'static str, String>,
    ) -> Result<String, TextError> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + bytes as u64 / BYTES_PER_FUEL;
        if fuel > MAX_FUEL {
            return Err(TextError::ChatTooLong { messages: messages.len(), bytes });
        }
        let stack = FLAT_STACK + fuel as usize * STACK_PER_FUEL;
        deep(stack, || {
            let messages: Vec<Value> = messages
                .iter()
                .map(|m| Value::from_pairs([("role", Value::from(&m.role)), ("content", Value::from(&m.content))]))
                .collect();
            let mut context = BTreeMap::from([
                ("messages", Value::from(messages)),
                ("add_generation_prompt", Value::from(add_generation_prompt)),
            ]);
            context.extend(special.iter().map(|(name, text)| (*name, Value::from(text))));
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel));
            let template = environment.get_template(NAME).map_err(failed)?;
            let rendered = template.render(Value::from(context)).map_err(failed)?;
            let fits = rendered.len() <= MAX_RENDERED;
            if fits { Ok(rendered) } else { Err(TextError::Rendered { most: MAX_RENDERED }) }
        })?
    }
}

/// Runs `work` on a stack of so many bytes.
fn deep<T: Send>(stack: usize, work: impl FnOnce() -> T + Send) -> Result<T, TextError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("template".to_owned()).stack_size(stack);
        let running = builder.spawn_scoped(scope, || contained(work)).map_err(TextError::Thread)?;
        let ended = running.join().map_err(|_| TextError::Thread(io::Error::other("its thread ended early")))?;
        ended.map_err(|panicked| TextError::Template(error_of(&panicked)))
    })
}

fn error_of(cause: &dyn std::error::Error) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, cause.to_string())
}

/// A template's own refusal is the client's to mend, any other error the model's.
fn failed(error: minijinja::Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        if this.is::<Raised>() {
            return TextError::Refused(error);
        }
        cause = this.source();
    }
    TextError::Template(error)
}

/// Jinja as transformers sets it up for chat templates.
fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
    });
    // The library writes a value whole before it takes fuel for it.
    environment.set_formatter(|out, state, value| {
        writable(value)?;
        escape_formatter(out, state, value)
    });
    environment.add_filter("string", |state: &State, value: &Value| {
        writable(value)?;
        filters::string(state, value)
    });
    environment.add_filter("tojson", |state: &State, value: &Value, indent: Option<Value>, named: Kwargs| {
        writable(value)?;
        let written = filters::tojson(value, indent, named)?;
        state.consume_fuel(written.as_str().map_or(0, str::len) as u64 / BYTES_PER_FUEL)?;
        Ok(written)
    });
    // For people who write templates; transformers has neither.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

/// Refuses a value that is too much for one text: lists in lists share their parts, so that some steps make more of them
/// than any memory holds.
fn writable(value: &Value) -> Result<(), minijinja::Error> {
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
    let mut left = if is_list(value) { vec![(value.clone(), 1)] } else { Vec::new() };
    let mut seen = 0_usize;
    while let Some((list, depth)) = left.pop() {
        let named = list.kind() == ValueKind::Map;
        for key in list.try_iter()? {
            seen += 1;
            if depth > MAX_DEPTH || seen > MAX_VALUES {
                let message =
                    format!("a text may be made of at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
            let inner = if named { list.get_item(&key)? } else { key };
            if is_list(&inner) {
                left.push((inner, depth + 1));
            }
        }
    }
    Ok(())
}
