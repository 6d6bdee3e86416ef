//! Opens the operator's page: kubectl forwards a port to it, with the rights of its caller.

use crate::cluster::Place;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt, api::ListParams};
use std::process::{ExitCode, Stdio};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// Port of the door that needs no login, in the operator's pod.
const DOOR: u16 = 8082;
/// Label of the operator's Deployment, as the chart sets it.
const OPERATOR: &str = "app.kubernetes.io/name=bitnet-rollouts-operator";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Open the page of this rollout; default: the list.
    name: Option<String>,
    /// Namespace of the operator; default: found by its labels.
    #[arg(long, value_name = "NAMESPACE")]
    operator_namespace: Option<String>,
    /// Port on this machine; 0: any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Print the address only.
    #[arg(long)]
    no_open: bool,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api: Api<Deployment> = match &args.operator_namespace {
        Some(namespace) => Api::namespaced(connection.client.clone(), namespace),
        None => Api::all(connection.client.clone()),
    };
    let ours = ListParams::default().labels(OPERATOR);
    let found =
        api.list(&ours).await.context("looking for the operator: name its namespace with --operator-namespace")?;
    let operator = match found.items.as_slice() {
        [one] => one,
        [] => bail!("no Deployment has the label {OPERATOR}: is the chart installed?"),
        _ => bail!("several operators are installed: choose one with --operator-namespace"),
    };
    let mut forward = Command::new("kubectl");
    forward.args(flags(place, &operator.namespace().unwrap_or_default()));
    forward.args(["port-forward", "--address", "127.0.0.1"]);
    forward.arg(format!("deployment/{}", operator.name_any()));
    forward.arg(if args.port == 0 { format!(":{DOOR}") } else { format!("{}:{DOOR}", args.port) });
    let mut child = forward
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("running kubectl, which forwards the port: it must be on PATH")?;
    let Some(out) = child.stdout.take() else { bail!("kubectl has no output") };
    let mut lines = BufReader::new(out).lines();
    let port = loop {
        match lines.next_line().await.context("reading what kubectl says")? {
            Some(line) => {
                if let Some(port) = forwarded(&line) {
                    break port;
                }
            }
            None => bail!("kubectl ended without forwarding a port: `dashboard.enabled` may be off in the chart"),
        }
    };
    let page = args.name.as_ref().map(|name| format!("{}/{name}", connection.namespace)).unwrap_or_default();
    let address = format!("http://localhost:{port}/#/{page}");
    println!("{address}   (Ctrl-C ends it)");
    if !args.no_open {
        open(&address);
    }
    // kubectl says a line for each connection: they are read so that it never waits for us.
    let talk = async { while let Ok(Some(_)) = lines.next_line().await {} };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
        () = talk => bail!("kubectl ended: the operator's pod went away, or the connection broke"),
    }
}

fn flags(place: &Place, namespace: &str) -> Vec<String> {
    let mut flags = vec![format!("--namespace={namespace}")];
    flags.extend(place.context.as_ref().map(|context| format!("--context={context}")));
    flags.extend(place.kubeconfig.as_ref().map(|path| format!("--kubeconfig={}", path.display())));
    flags
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 8082`.
fn forwarded(line: &str) -> Option<u16> {
    let (_, rest) = line.strip_prefix("Forwarding from ")?.split_once(':')?;
    rest.split_once(" -> ")?.0.parse().ok()
}

/// Best effort: the address is on the terminal anyway.
fn open(address: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let started = std::process::Command::new(program).arg(address).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if started.is_err() {
        eprintln!("No browser was opened ({program} is missing): open the address yourself.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_what_kubectl_says() {
        assert_eq!(forwarded("Forwarding from 127.0.0.1:40123 -> 8082"), Some(40123));
        assert_eq!(forwarded("Handling connection for 40123"), None);
        assert_eq!(forwarded("Forwarding from [::1]:40123 -> 8082"), None);
    }

    #[test]
    fn kubectl_looks_where_we_look() {
        let place = Place { namespace: None, context: Some("prod".into()), kubeconfig: Some("/k".into()) };
        assert_eq!(flags(&place, "ops"), ["--namespace=ops", "--context=prod", "--kubeconfig=/k"]);
    }
}
