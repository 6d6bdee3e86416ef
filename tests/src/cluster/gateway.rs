//! Envoy Gateway: its chart and program come from its Go module, Envoy from its wheel.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use super::command;
use super::images::{self, Contents};
use super::processes::Supervisor;

const NAMESPACE: &str = "envoy-gateway-system";

/// Loads the images of the gateway and of its proxies.
pub(super) fn load_images(supervisor: &Supervisor<'_>) -> Result<()> {
    for program in ["envoy-gateway", "envoy"] {
        images::load(supervisor, program, &Contents::program(&supervisor.tools.program(program)?, &[])?)?;
    }
    Ok(())
}

/// Installs the chart with the Gateway API; needs a node, because the chart makes its certificates in a pod.
pub(super) fn install(supervisor: &Supervisor<'_>) -> Result<()> {
    let chart = supervisor.tools.program("gateway-helm")?;
    let chart = chart.to_str().context("the cache's path must be UTF-8")?;
    let args = ["install", "eg", chart, "-n", NAMESPACE, "--create-namespace", "--timeout", "3m"];
    command::run(&mut supervisor.helm_command(&args)?)?;
    supervisor.apply(include_str!("../../box/manifests/gateway.yaml"))?;
    supervisor.kubectl(&["wait", "--for=condition=Accepted", "gatewayclass/eg", "--timeout=120s"])?;
    Ok(())
}

/// Where a Gateway's first listener answers, once it is programmed.
pub(super) fn address(
    supervisor: &Supervisor<'_>,
    namespace: &str,
    gateway: &str,
    limit: Duration,
) -> Result<SocketAddr> {
    let name = format!("gateway/{gateway}");
    let timeout = format!("--timeout={}s", limit.as_secs());
    supervisor.kubectl(&["wait", "-n", namespace, "--for=condition=Programmed", &name, &timeout])?;
    let path = "jsonpath={.status.addresses[0].value} {.spec.listeners[0].port}";
    let said = supervisor.kubectl(&["get", "-n", namespace, &name, "-o", path])?;
    let (address, port) = said.split_once(' ').context("the gateway reports no address")?;
    let address: IpAddr = address.parse().with_context(|| format!("the gateway's address is {address:?}"))?;
    Ok(SocketAddr::new(address, port.parse().context("the gateway's listener has no port")?))
}
