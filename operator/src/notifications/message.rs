//! What a notification says, and how each kind of receiver wants it.

use crate::config::ChannelFormat;
use bitnet_api::v1alpha1::ModelRolloutStatus;
use minijinja::{Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What happened. A closed set: channels name those that they want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Occasion {
    /// A candidate is on its way.
    Progressing,
    /// A candidate was promoted.
    Promoted,
    /// A candidate was rolled back.
    RolledBack,
    /// The deadline passed without a verdict.
    Inconclusive,
    /// An A/B test ended.
    Reported,
    /// The candidate is at weight 0 and waits.
    Holding,
    /// Something needs a person.
    Degraded,
}

impl Occasion {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Progressing,
        Self::Promoted,
        Self::RolledBack,
        Self::Inconclusive,
        Self::Reported,
        Self::Holding,
        Self::Degraded,
    ];

    /// Those that a channel gets that names none: verdicts, and what needs somebody.
    pub const DEFAULT: [Self; 6] =
        [Self::Promoted, Self::RolledBack, Self::Inconclusive, Self::Reported, Self::Holding, Self::Degraded];

    fn of_verdict(name: &str) -> Option<Self> {
        match name {
            "Promoted" => Some(Self::Promoted),
            "RolledBack" => Some(Self::RolledBack),
            "Inconclusive" => Some(Self::Inconclusive),
            "Reported" => Some(Self::Reported),
            _ => None,
        }
    }

    /// A person should look at it.
    fn warns(self) -> bool {
        !matches!(self, Self::Progressing | Self::Promoted)
    }
}

/// One thing to tell, the body of the generic receiver. It holds names, numbers and messages; no prompt and no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// What happened.
    pub occasion: Occasion,
    /// Namespace of the rollout.
    pub namespace: String,
    /// Its name.
    pub rollout: String,
    /// Its phase.
    pub phase: String,
    /// Machine-readable reason.
    pub reason: String,
    /// In words.
    pub message: String,
    /// The candidate's revision.
    pub candidate: Option<String>,
    /// Stable's revision.
    pub stable: Option<String>,
    /// Attempt of the candidate.
    pub attempt: Option<i32>,
    /// Weight of the candidate in percent.
    pub weight: Option<i32>,
    /// Name of the RolloutDecision, for verdicts: a receiver that must not count twice keys on it.
    pub decision: Option<String>,
    /// When (RFC 3339).
    pub at: String,
}

impl Notification {
    /// What is new in `status`, which was just stored in place of `old`. `now` in RFC 3339.
    pub fn between(
        namespace: &str,
        rollout: &str,
        old: &ModelRolloutStatus,
        status: &ModelRolloutStatus,
        now: &str,
    ) -> Vec<Self> {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let about = |occasion, reason: String, decision: Option<String>, at: String| Self {
            occasion,
            namespace: namespace.to_owned(),
            rollout: rollout.to_owned(),
            phase: status.phase.clone(),
            reason,
            message: status.message.clone(),
            candidate: status.candidate.as_ref().map(|candidate| candidate.revision.clone()),
            stable: status.stable.as_ref().map(|stable| stable.revision.clone()),
            attempt: status.attempt,
            weight: status.step.as_ref().map(|step| step.weight),
            decision,
            at,
        };
        let mut all = Vec::new();
        if let Some(decision) = &status.decision
            && old.decision.as_ref().is_none_or(|before| before.id != decision.id)
            && let Some(occasion) = Occasion::of_verdict(&decision.verdict)
        {
            all.push(about(occasion, decision.reason.clone(), Some(decision.id.clone()), decision.at.clone()));
        }
        let began = match status.phase.as_str() {
            phase if phase == old.phase => None,
            "Degraded" => Some(Occasion::Degraded),
            // An attempt that ended without a verdict holds, too: that was told already.
            "Holding" if all.is_empty() => Some(Occasion::Holding),
            // A step's pause and a lost pod are no new rollout.
            "Progressing" if status.attempt != old.attempt => Some(Occasion::Progressing),
            _ => None,
        };
        if let Some(occasion) = began {
            let reason = ready.map(|condition| condition.reason.clone()).unwrap_or_default();
            all.push(about(occasion, reason, None, now.to_owned()));
        }
        all
    }

    /// The command that tells more.
    fn command(&self) -> String {
        let verb = if self.decision.is_some() { "explain" } else { "status" };
        format!("kubectl bitnet {verb} {} -n {}", self.decision.as_deref().unwrap_or(&self.rollout), self.namespace)
    }

    #[cfg(test)]
    pub(super) fn sample() -> Self {
        sample(Occasion::RolledBack)
    }
}

/// A notification to try templates on.
fn sample(occasion: Occasion) -> Notification {
    Notification {
        occasion,
        namespace: "team-a".into(),
        rollout: "chat".into(),
        phase: "RollingBack".into(),
        reason: "QualityFailed".into(),
        message: "the mean cosine is proven to be under 0.95".into(),
        candidate: Some("chat-b".into()),
        stable: Some("chat-a".into()),
        attempt: Some(1),
        weight: Some(0),
        decision: Some("chat-1a2b".into()),
        at: "2026-01-01T00:00:00Z".into(),
    }
}

/// Why a template is refused.
#[derive(Debug, thiserror::Error)]
#[error("it must be a Jinja template over the fields of a notification")]
pub struct TemplateError(#[source] Box<minijinja::Error>);

const NAME: &str = "template";
const DEFAULT: &str = "{{ occasion }}: {{ namespace }}/{{ rollout }}\
    {% if candidate %}, candidate {{ candidate }}{% endif %}\
    {% if attempt %}, attempt {{ attempt }}{% endif %}\
    {% if reason %} ({{ reason }}){% endif %}. {{ message }}\n{{ command }}";

/// The text of a notification, and the body that a kind of receiver takes.
pub struct Template {
    format: ChannelFormat,
    environment: Environment<'static>,
}

impl Template {
    /// `None`: the default text. A template is tried on every occasion, so that a name that does not exist is refused now.
    pub fn new(format: ChannelFormat, text: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let text = text.unwrap_or(DEFAULT).to_owned();
        environment.add_template_owned(NAME, text).map_err(|error| TemplateError(Box::new(error)))?;
        let template = Self { format, environment };
        for occasion in Occasion::ALL {
            template.text(&sample(occasion))?;
        }
        Ok(template)
    }

    /// The text.
    pub(super) fn text(&self, about: &Notification) -> Result<String, TemplateError> {
        let mut fields = json!(about);
        fields["command"] = json!(about.command());
        let values = fields.as_object().into_iter().flatten().map(|(name, field)| (name.as_str(), value(field)));
        let values: BTreeMap<&str, minijinja::Value> = values.collect();
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(values)).map_err(|error| TemplateError(Box::new(error)))
    }

    /// The body of the request.
    pub(super) fn body(&self, about: &Notification) -> Result<Value, TemplateError> {
        let text = self.text(about)?;
        Ok(match self.format {
            ChannelFormat::Json => {
                let mut body = json!(about);
                body["text"] = json!(text);
                body
            }
            ChannelFormat::Slack => json!({ "text": slack(&text) }),
            ChannelFormat::Teams => teams(about, &text),
        })
    }
}

/// A field of a notification: a text, a whole number, or none.
fn value(field: &Value) -> minijinja::Value {
    match field {
        Value::String(text) => text.as_str().into(),
        Value::Number(number) => number.as_i64().into(),
        _ => ().into(),
    }
}

/// Slack reads three characters as markup; names and messages must not become links or mentions.
fn slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A message with an adaptive card, as the workflow "When a Teams webhook request is received" takes it.
fn teams(about: &Notification, text: &str) -> Value {
    let color = if about.occasion.warns() { "attention" } else { "good" };
    let title = format!("{}/{}: {:?}", about.namespace, about.rollout, about.occasion);
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": [
                    {"type": "TextBlock", "text": title, "weight": "bolder", "color": color, "wrap": true},
                    {"type": "TextBlock", "text": text, "wrap": true},
                ],
            },
        }],
    })
}
