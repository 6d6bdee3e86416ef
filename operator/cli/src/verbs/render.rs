use crate::{
    files::Files,
    output::{Machine, print_machine, yaml},
    providers::{Provider, Split},
};
use anyhow::{Result, bail};
use bitnet_core::model::{CanaryStep, HeaderMatch, Revision, Rollout, RouteTarget, Strategy};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Print what another traffic provider would need for one step of a rollout: Istio, ingress-nginx, or InferencePools. No
/// cluster is asked, and nothing is applied.
///
/// The operator neither reads nor writes these objects: its own route is an HTTPRoute, and only that one follows the
/// evidence. Whoever applies these moves the weights, and takes them back.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Files,
    /// Whose objects.
    #[arg(long, value_enum)]
    provider: Kind,
    /// Percent of the requests for the candidate. Default: the strategy's first step.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100))]
    weight: Option<u32>,
    /// A host name that clients call; may be repeated. Default: spec.route.hostnames.
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// A cookie for testers: with the value `always` they meet the candidate, with `never` stable.
    #[arg(long, value_name = "NAME")]
    cookie: Option<String>,
    /// The revision that serves. Default: that of spec.baseline (a first rollout).
    #[arg(long, value_name = "REVISION")]
    stable: Option<String>,
    /// istio: the Istio Gateway, NAMESPACE/NAME (default: the mesh's own proxies). inference-pool: the Gateway of the route
    /// (default: spec.route.gateway).
    #[arg(long, value_name = "GATEWAY")]
    gateway: Option<String>,
    /// nginx: the class of the Ingresses. Default: nginx.
    #[arg(long, value_name = "CLASS")]
    ingress_class: Option<String>,
    /// inference-pool: Service and port of each pool's endpoint picker, with {} for the revision. Default: {}-epp:9002.
    #[arg(long, value_name = "SERVICE:PORT")]
    endpoint_picker: Option<String>,
    /// Output.
    #[arg(short, long, value_enum, default_value_t = Machine::Yaml)]
    output: Machine,
}

/// `--provider`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// An Istio VirtualService.
    Istio,
    /// Two Ingresses of ingress-nginx: stable's, and its canary.
    Nginx,
    /// An HTTPRoute over InferencePools of Gateway API's inference extension.
    InferencePool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let rollout = args.files.rollout()?;
    let split = split(args, &rollout)?;
    let objects = provider(args, &rollout)?.render(&split)?;
    match args.output {
        Machine::Json => print_machine(Machine::Json, &json!({"apiVersion": "v1", "kind": "List", "items": objects}))?,
        Machine::Yaml => print!("{}", text(&split, &objects)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(split: &Split, objects: &[Value]) -> Result<String> {
    let Split { rollout, stable, candidate, weight, .. } = split;
    let mut text = format!(
        "# {rollout}: {weight} % to {candidate}, the rest to {stable}, as printed by kubectl bitnet render.\n\
         # The operator neither reads nor writes these objects: they stay as they are until you change them.\n"
    );
    for (i, object) in objects.iter().enumerate() {
        text += if i > 0 { "---\n" } else { "" };
        text += &yaml(object)?;
    }
    Ok(text)
}

fn provider(args: &Args, rollout: &Rollout) -> Result<Provider> {
    let foreign = [
        ("--ingress-class", args.ingress_class.is_some(), Kind::Nginx, "nginx"),
        ("--endpoint-picker", args.endpoint_picker.is_some(), Kind::InferencePool, "inference-pool"),
    ];
    for (flag, given, of, name) in foreign {
        if given && args.provider != of {
            bail!("{flag} belongs to --provider {name}: leave it out");
        }
    }
    match args.provider {
        Kind::Istio => Ok(Provider::Istio { gateway: args.gateway.clone() }),
        Kind::Nginx if args.gateway.is_some() => {
            bail!("--gateway: an Ingress has a class and no Gateway: give --ingress-class")
        }
        Kind::Nginx => Ok(Provider::Nginx { class: args.ingress_class.clone().unwrap_or_else(|| "nginx".into()) }),
        Kind::InferencePool => {
            let own = match &rollout.route {
                RouteTarget::Own { gateway, .. } => Some(gateway),
                RouteTarget::Adopt { .. } => None,
            };
            let Some(gateway) = args.gateway.as_ref().or(own).cloned() else {
                bail!("--gateway: the route needs the name of its Gateway, which spec.route does not say: give it");
            };
            let picker = args.endpoint_picker.as_deref().unwrap_or("{}-epp:9002");
            let Some((service, Ok(port))) = picker.rsplit_once(':').map(|(s, p)| (s, p.parse::<u16>())) else {
                bail!("--endpoint-picker {picker}: it is SERVICE:PORT, for example {{}}-epp:9002");
            };
            if !service.contains("{}") {
                bail!(
                    "--endpoint-picker {picker}: each pool has a picker of its own: put {{}} where the revision stands in its name"
                );
            }
            Ok(Provider::InferencePool { gateway, picker: service.to_owned(), picker_port: port })
        }
    }
}

fn split(args: &Args, rollout: &Rollout) -> Result<Split> {
    let steps = rollout.strategy.steps();
    match &rollout.strategy {
        Strategy::AbTest(_) => bail!(
            "spec.strategy.abTest: workers learn of a test from a header that the operator puts on its own HTTPRoute, so \
             its users would not stay with an arm here; use a canary or blueGreen, or the operator's route"
        ),
        Strategy::BlueGreen(way) if way.preview_host.is_some() => {
            bail!("spec.strategy.blueGreen.previewHost: the preview is an HTTPRoute of the operator; leave it out here")
        }
        Strategy::BlueGreen(_) | Strategy::Canary(_) => {}
    }
    let stable = args.stable.clone().map_or_else(|| rollout.baseline.revision.clone(), Revision);
    let candidate = rollout.model.revision.clone();
    if stable == candidate {
        bail!("{candidate} is stable already: there is nothing to split; change spec.model, or name another --stable");
    }
    if let Some(name) = &args.cookie
        && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)))
    {
        bail!("--cookie {name}: the name of a cookie has letters, digits, - and _ only");
    }
    let own = match &rollout.route {
        RouteTarget::Own { hostnames, .. } => hostnames.clone(),
        RouteTarget::Adopt { .. } => Vec::new(),
    };
    let weight = args.weight.or(steps.first().map(|step| step.weight)).unwrap_or(0);
    Ok(Split {
        namespace: rollout.namespace.clone(),
        rollout: rollout.name.clone(),
        stable,
        candidate,
        weight,
        headers: headers(steps, weight),
        cookie: args.cookie.clone(),
        hosts: if args.host.is_empty() { own } else { args.host.clone() },
        balancing: rollout.load_balancing,
    })
}

/// Headers that lead to the candidate at the step of this weight.
fn headers(steps: &[CanaryStep], weight: u32) -> Vec<HeaderMatch> {
    steps.iter().find(|step| step.weight == weight).map(|step| step.matches.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Verb};
    use clap::Parser;

    /// What the command prints for the spec of a ModelRollout without its arms, or what it says.
    fn printed(spec: &str, arguments: &[&str]) -> Result<String> {
        let image = |name: &str| format!("r.example/{name}@sha256:{}", "1".repeat(64));
        let text = format!(
            "apiVersion: rollouts.bitnet.dev/v1alpha1\nkind: ModelRollout\nmetadata: {{name: chat, namespace: team}}\nspec:\n  \
             baseline: {{source: {{image: \"{}\"}}}}\n  model: {{source: {{image: \"{}\"}}}}\n  gate: {{name: not-in-the-file}}\n{spec}",
            image("fp16"),
            image("bitnet")
        );
        let mut hash = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&(&text, arguments), &mut hash);
        let file = std::env::temp_dir().join(format!(
            "bitnet-render-{}-{:x}",
            std::process::id(),
            std::hash::Hasher::finish(&hash)
        ));
        std::fs::write(&file, text)?;
        let line = ["kubectl-bitnet", "render", "-f", file.to_str().unwrap()];
        let Verb::Render(args) = Cli::try_parse_from(line.iter().chain(arguments))?.verb else {
            panic!("another verb")
        };
        let rollout = args.files.rollout();
        std::fs::remove_file(&file)?;
        let rollout = rollout?;
        let split = split(&args, &rollout)?;
        super::text(&split, &provider(&args, &rollout)?.render(&split)?)
    }

    const CANARY: &str = "  route: {gateway: gw, hostnames: [chat.example]}\n  strategy: {canary: {steps: [{weight: 5, duration: 1m, \
                          match: {headers: [{name: X-Tester, value: \"yes\"}]}}, {weight: 50, duration: 1m}]}}\n";

    #[test]
    fn a_step_of_a_canary_is_printed_for_each_provider() {
        let first = printed(CANARY, &["--provider", "istio"]).unwrap();
        for part in ["chat: 5 % to chat-", "kind: VirtualService", "- chat.example", "x-tester", "weight: 95"] {
            assert!(first.contains(part), "{part}: {first}");
        }
        let last = printed(CANARY, &["--provider", "istio", "--weight", "50"]).unwrap();
        assert!(!last.contains("x-tester"), "the header belongs to the other step: {last}");
        let nginx = printed(CANARY, &["--provider", "nginx", "--host", "a.example", "--cookie", "beta"]).unwrap();
        for part in ["canary-weight: '5'", "canary-by-header-value: 'yes'", "canary-by-cookie: beta", "host: a.example"]
        {
            assert!(nginx.contains(part), "{part}: {nginx}");
        }
        assert!(!nginx.contains("chat.example"));
        let pools =
            printed(CANARY, &["--provider", "inference-pool", "--weight", "0", "--stable", "chat-old"]).unwrap();
        for part in ["kind: InferencePool", "name: chat-old-epp", "number: 9002", "name: gw", "weight: 0"] {
            assert!(pools.contains(part), "{part}: {pools}");
        }
    }

    #[test]
    fn what_cannot_be_printed_is_refused_with_its_field_and_a_remedy() {
        let canary = "  route: {httpRoute: chat}\n";
        let test = "  route: {gateway: gw}\n  strategy: {abTest: {weight: 50}}\n";
        let preview = "  route: {gateway: gw}\n  strategy: {blueGreen: {previewHost: p.example}}\n";
        let cases: [(&str, &[&str], &str); 9] = [
            (test, &["--provider", "istio"], "spec.strategy.abTest"),
            (preview, &["--provider", "nginx"], "previewHost"),
            (canary, &["--provider", "istio"], "--host"),
            (canary, &["--provider", "inference-pool"], "--gateway"),
            (CANARY, &["--provider", "inference-pool", "--endpoint-picker", "epp"], "SERVICE:PORT"),
            (CANARY, &["--provider", "inference-pool", "--endpoint-picker", "epp:1"], "a picker of its own"),
            (CANARY, &["--provider", "istio", "--ingress-class", "x"], "belongs to --provider nginx"),
            (CANARY, &["--provider", "nginx", "--gateway", "x"], "give --ingress-class"),
            (CANARY, &["--provider", "nginx", "--cookie", "a b"], "--cookie a b"),
        ];
        for (spec, arguments, part) in cases {
            let error = format!("{:#}", printed(spec, arguments).unwrap_err());
            assert!(error.contains(part), "{part}: {error}");
        }
        let arguments = ["--provider", "istio", "--weight", "101"];
        assert!(printed(CANARY, &arguments).unwrap_err().to_string().contains("101"));
    }
}
