//! etcd, the API server, and what decides and routes: everything but the node.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::layout::{NODE_IP, NODE_NAME, POD_CIDR, SERVICE_CIDR};
use super::processes::Supervisor;

/// Starts etcd and the API server; returns once the API answers and its own bootstrap is done.
pub(super) fn start_api(supervisor: &Supervisor<'_>) -> Result<()> {
    let run = supervisor.layout.run();
    fs::write(run.join("audit-policy.yaml"), include_str!("../../box/manifests/audit-policy.yaml"))?;
    // The data dies with the box: waiting for the disk would only slow the tests down.
    supervisor.start("etcd", "etcd", &["--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn"])?;
    supervisor.start(
        "apiserver",
        "kube-apiserver",
        &[
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=6443",
            &format!("--advertise-address={NODE_IP}"),
            "--tls-cert-file=pki/api.crt",
            "--tls-private-key-file=pki/api.key",
            "--token-auth-file=pki/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=pki/sa.key",
            "--service-account-signing-key-file=pki/sa.key",
            &format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            "--audit-policy-file=audit-policy.yaml",
            &format!("--audit-log-path={}", supervisor.layout.audit_log().display()),
        ],
    )?;
    supervisor.wait("apiserver", Duration::from_mins(1), |supervisor| {
        supervisor.kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).map(|_| true)
    })
}

/// Starts controllers, scheduler, service routing and DNS.
pub(super) fn start_controllers(supervisor: &Supervisor<'_>) -> Result<()> {
    supervisor.start(
        "controller-manager",
        "kube-controller-manager",
        &[
            "--kubeconfig=pki/controller-manager.conf",
            "--service-account-private-key-file=pki/sa.key",
            "--root-ca-file=pki/ca.crt",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
    )?;
    supervisor.start(
        "scheduler",
        "kube-scheduler",
        &["--kubeconfig=pki/scheduler.conf", "--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400"],
    )?;
    supervisor.start(
        "proxy",
        "kube-proxy",
        &[
            "--kubeconfig=pki/proxy.conf",
            "--proxy-mode=nftables",
            &format!("--hostname-override={NODE_NAME}"),
            &format!("--cluster-cidr={POD_CIDR}"),
            // The connection table's size is the host's setting.
            "--conntrack-max-per-core=0",
        ],
    )?;
    let corefile = supervisor.layout.fill(include_str!("../../box/manifests/Corefile"));
    fs::write(supervisor.layout.run().join("Corefile"), corefile)?;
    supervisor.start("coredns", "coredns", &["-conf", "Corefile"])
}
