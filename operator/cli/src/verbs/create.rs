use crate::output::yaml;
use anyhow::{Result, bail};
use bitnet_api::{
    v1alpha1::{ModelRollout, QualityGate},
    validate::{Pools, validate},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
};

/// `kubectl bitnet create chat … | kubectl apply -f -`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the rollout, and of its gate.
    name: String,
    /// The fp16 model: an image by digest, repository@sha256:…. What is not given is asked for on a terminal.
    #[arg(long, value_name = "IMAGE")]
    baseline: Option<String>,
    /// The model that should serve: an image by digest.
    #[arg(long, value_name = "IMAGE")]
    model: Option<String>,
    /// An HTTPRoute of yours, and the name of its rule where it has several: ROUTE or ROUTE/RULE.
    #[arg(long, value_name = "ROUTE[/RULE]", conflicts_with = "gateway")]
    route: Option<String>,
    /// A Gateway: the operator makes a route of its own for the rollout.
    #[arg(long)]
    gateway: Option<String>,
    /// Host names of the own route.
    #[arg(long, requires = "gateway", value_name = "HOST")]
    hostname: Vec<String>,
    /// ConfigMap with the probe prompts (key prompts.jsonl, one {"prompt": "…"} per line). Default: NAME-probes.
    #[arg(long, value_name = "CONFIGMAP")]
    probes: Option<String>,
    /// Pods of each model.
    #[arg(long, default_value_t = 3)]
    replicas: u16,
    /// Node pool of both models; default: that of the installation.
    #[arg(long)]
    pool: Option<String>,
    /// All traffic at once after everything was proven, instead of rising shares.
    #[arg(long)]
    blue_green: bool,
}

/// Writes the objects to standard output. The cluster is not asked: what it would refuse is refused here.
pub(crate) fn run(namespace: Option<&str>, mut args: Args) -> Result<ExitCode> {
    let input = std::io::stdin();
    if input.is_terminal() {
        // Questions go to standard error: standard output is the YAML.
        ask(&mut args, &mut input.lock(), &mut std::io::stderr())?;
    }
    print!("{}", text(namespace, &args)?);
    Ok(ExitCode::SUCCESS)
}

/// Asks for what is missing, each until the answer is one that the operator would take.
fn ask(args: &mut Args, input: &mut impl BufRead, output: &mut impl Write) -> Result<()> {
    for (field, question) in [
        (&mut args.baseline, "The fp16 model, an image by digest (repository@sha256:…)"),
        (&mut args.model, "The model that should serve, an image by digest"),
    ] {
        if field.is_none() {
            *field = Some(question_of(question, input, output, by_digest)?);
        }
    }
    if args.route.is_none() && args.gateway.is_none() {
        let question =
            "Your HTTPRoute whose traffic it takes (ROUTE or ROUTE/RULE), or gateway:NAME for a route of its own";
        let answer = question_of(question, input, output, |text| {
            (!text.is_empty() && text != "gateway:").then_some(()).ok_or("give a name")
        })?;
        match answer.strip_prefix("gateway:") {
            Some(gateway) => args.gateway = Some(gateway.trim().to_owned()),
            None => args.route = Some(answer),
        }
    }
    Ok(())
}

fn by_digest(text: &str) -> Result<(), &'static str> {
    let digest = text.split_once("@sha256:").map(|(_, digest)| digest);
    let whole = digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()));
    if whole { Ok(()) } else { Err("it must be named by digest, so that it never changes: repository@sha256:…") }
}

fn question_of(
    question: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<String> {
    loop {
        write!(output, "{question}: ")?;
        output.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            bail!("nothing was answered: give the flags instead (`kubectl bitnet create --help`)");
        }
        let line = line.trim();
        match check(line) {
            Ok(()) => return Ok(line.to_owned()),
            Err(why) => writeln!(output, "  {why}")?,
        }
    }
}

fn text(namespace: Option<&str>, args: &Args) -> Result<String> {
    let (Some(baseline), Some(model)) = (&args.baseline, &args.model) else {
        bail!("give --baseline and --model, or answer the questions on a terminal");
    };
    if args.route.is_none() && args.gateway.is_none() {
        bail!("give --route or --gateway, or answer the questions on a terminal");
    }
    let (gate, rollout) = (gate(namespace, args), rollout(namespace, args, baseline, model));
    check(&gate, &rollout, args)?;
    let probes = probes(args);
    Ok(format!(
        "# Prompts that the models are compared on, in your namespace before this:\n\
         #   kubectl create configmap {probes} --from-file=prompts.jsonl\n{}---\n{}",
        yaml(&gate)?,
        yaml(&rollout)?,
    ))
}

fn probes(args: &Args) -> String {
    args.probes.clone().unwrap_or_else(|| format!("{}-probes", args.name))
}

fn metadata(namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn gate(namespace: Option<&str>, args: &Args) -> Value {
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate", "metadata": metadata(namespace, &args.name),
        "spec": {"probes": {"configMap": probes(args)}},
    })
}

fn rollout(namespace: Option<&str>, args: &Args, baseline: &str, model: &str) -> Value {
    let arm = |image: &str| {
        let mut arm = json!({"source": {"image": image}, "replicas": args.replicas});
        if let Some(pool) = &args.pool {
            arm["pool"] = json!(pool);
        }
        arm
    };
    let route = match (&args.gateway, &args.route) {
        (Some(gateway), _) if args.hostname.is_empty() => json!({ "gateway": gateway }),
        (Some(gateway), _) => json!({"gateway": gateway, "hostnames": args.hostname}),
        (None, route) => match route.as_deref().unwrap_or_default().split_once('/') {
            Some((route, rule)) => json!({"httpRoute": route, "rule": rule}),
            None => json!({ "httpRoute": route }),
        },
    };
    let mut spec = json!({
        "baseline": arm(baseline), "model": arm(model), "route": route, "gate": {"name": args.name},
    });
    if args.blue_green {
        spec["strategy"] = json!({"blueGreen": {}});
    }
    json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout", "metadata": metadata(namespace, &args.name),
        "spec": spec,
    })
}

/// What the operator would say to these objects.
fn check(gate: &Value, rollout: &Value, args: &Args) -> Result<()> {
    let gate: QualityGate = serde_json::from_value(gate.clone())?;
    let mut rollout: ModelRollout = serde_json::from_value(rollout.clone())?;
    rollout.metadata.namespace.get_or_insert_with(|| "default".into());
    rollout.metadata.uid = Some("not-stored-yet".into());
    // Only the installation knows its pools: whichever is named here is taken to be one.
    let pool = args.pool.clone().unwrap_or_else(|| "cpu".into());
    let pools = Pools { names: [pool.clone()].into(), default: pool, ..Pools::default() };
    if let Err(refusal) = validate(&rollout, Some(&gate), &pools) {
        bail!("{refusal}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn created(flags: &[&str]) -> Result<String> {
        let image = |digit: &str| format!("registry.example/chat@sha256:{}", digit.repeat(64));
        let (baseline, model) = (image("a"), image("b"));
        let begin = ["create", "chat", "--baseline", &baseline, "--model", &model];
        text(None, &Line::try_parse_from(begin.iter().chain(flags))?.args)
    }

    #[test]
    fn the_least_flags_make_a_small_rollout() {
        let text = created(&["--gateway", "gw"]).unwrap();
        insta::assert_snapshot!(text);
        let rollout = text.split("---\n").nth(1).unwrap();
        assert!(rollout.lines().count() <= 19, "{rollout}");
    }

    #[test]
    fn flags_reach_their_fields() {
        let text =
            created(&["--route", "shop/completions", "--blue-green", "--pool", "gpu", "--probes", "mine"]).unwrap();
        for part in ["httpRoute: shop", "rule: completions", "blueGreen: {}", "pool: gpu", "configMap: mine"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn what_the_operator_would_refuse_is_refused_here_with_its_words() {
        let by_tag = created(&["--gateway", "gw", "--model", "registry.example/chat:latest"]);
        // Given twice: clap takes it as wrong usage. Alone, the digest is missing.
        assert!(by_tag.is_err());
        let baseline = format!("r.example/m@sha256:{}", "a".repeat(64));
        let line = ["create", "chat", "--baseline", &baseline, "--model", "r.example/m:latest", "--gateway", "gw"];
        let error = text(None, &Line::try_parse_from(line).unwrap().args).unwrap_err().to_string();
        assert!(error.contains("spec.model.source.image"), "{error}");
        assert!(created(&[]).is_err(), "one of --route and --gateway is needed");
    }

    #[test]
    fn what_is_missing_is_asked_for_until_it_is_right() {
        let image = |digit: &str| format!("r.example/m@sha256:{}", digit.repeat(64));
        let asked = |answers: &str| {
            let mut args = Line::try_parse_from(["create", "chat"]).unwrap().args;
            let mut said = Vec::new();
            let outcome = ask(&mut args, &mut answers.as_bytes(), &mut said);
            (outcome.and_then(|()| text(None, &args)), String::from_utf8(said).unwrap())
        };
        let (made, said) = asked(&format!("r.example/m:latest\n{}\n{}\ngateway:gw\n", image("a"), image("b")));
        let made = made.unwrap();
        assert!(said.contains("named by digest") && made.contains("gateway: gw"), "{said}\n{made}");
        assert!(made.contains(&image("a")) && made.contains(&image("b")), "{made}");
        let (made, _) = asked(&format!("{}\n{}\nshop/completions\n", image("a"), image("b")));
        assert!(made.unwrap().contains("rule: completions"));
        assert!(asked(&image("a")).0.unwrap_err().to_string().contains("give the flags"), "the input ended");
        let alone = Line::try_parse_from(["create", "chat"]).unwrap().args;
        assert!(text(None, &alone).unwrap_err().to_string().contains("--baseline"));
    }
}
