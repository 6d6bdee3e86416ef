use super::{HOUR, Refusal, span};
use crate::v1alpha1::GuardSpec;
use bitnet_core::{
    Span,
    evidence::{Gate, guard::GuardSettings},
    model::GuardRule,
};

/// Time between two comparisons.
const INTERVAL: Span = Span::seconds(60);

/// The guard, with the gate's margins where it has none of its own.
pub(super) fn guard(spec: Option<&GuardSpec>, gate: &Gate) -> Result<Option<GuardRule>, Refusal> {
    let Some(spec) = spec.filter(|spec| spec.enabled) else { return Ok(None) };
    let interval = match &spec.interval {
        Some(text) => span("spec.guard.interval", text, 1000, HOUR)?,
        None => INTERVAL,
    };
    let mut settings = GuardSettings::of(gate);
    if let Some(ratio) = &spec.max_ratio {
        let field = "spec.guard.maxRatio";
        let remedy = "write a decimal above 1 and at most 10, for example \"1.5\"";
        let number = ratio.number().map_err(|error| Refusal::invalid(field, error.to_string(), remedy))?;
        if !(number > 1.0 && number <= 10.0) {
            return Err(Refusal::invalid(field, format!("`{ratio}` is out of bounds"), remedy));
        }
        settings.max_ratio = number;
    }
    Ok(Some(GuardRule { interval, settings }))
}
