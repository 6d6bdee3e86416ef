//! Bringing a box up: as much as possible at the same time.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::layout::Layout;
use super::processes::{self, Supervisor};
use super::progress::Progress;
use super::tools::Tools;
use super::{control_plane, gateway, netns, node, pki};

/// Whether the box is complete, alive, and made by these tools.
pub(super) fn is_up(layout: &Layout, tools: &Tools) -> Result<bool> {
    let complete = fs::read_to_string(layout.ready()).is_ok_and(|key| key == tools.key());
    let processes = processes::list(layout)?;
    Ok(complete && netns::exists(layout) && !processes.is_empty() && processes.iter().all(|process| process.alive))
}

/// Starts everything in an empty folder.
pub(super) fn up(layout: &Layout, tools: &Tools, with_gateway: bool, progress: &Progress) -> Result<()> {
    for dir in [layout.logs(), layout.pids(), layout.run().join("tmp")] {
        fs::create_dir_all(dir)?;
    }
    let supervisor = Supervisor { layout, tools };
    let supervisor = &supervisor;
    progress.stage("network and certificates", || {
        netns::create(layout)?;
        pki::create(layout)
    })?;
    thread::scope(|scope| {
        let (runtime_ready, runtime) = mpsc::channel();
        let images = scope.spawn(move || -> Result<()> {
            progress.stage("containerd", || node::start_runtime(supervisor))?;
            // Nobody listens if the control plane has failed; that error is reported then.
            let _ = runtime_ready.send(());
            if with_gateway {
                progress.stage("gateway images", || gateway::load_images(supervisor))?;
            }
            Ok(())
        });
        progress.stage("etcd and API server", || control_plane::start_api(supervisor))?;
        control_plane::start_controllers(supervisor)?;
        let node = progress.stage("node ready", || {
            runtime.recv().context("containerd did not start")?;
            node::start_kubelet(supervisor)?;
            let install = with_gateway.then(|| scope.spawn(|| gateway::install(supervisor)));
            node::wait_ready(supervisor)?;
            Ok(install)
        });
        // The first cause is more telling than its consequence.
        join(images)?;
        if let Some(install) = node? {
            progress.stage("Envoy Gateway", || join(install))?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    fs::write(layout.ready(), tools.key())?;
    Ok(())
}

fn join(handle: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    handle.join().map_err(|_| anyhow!("a starting thread panicked"))?
}

/// How long a Gateway may take until it is programmed.
pub(super) const GATEWAY_LIMIT: Duration = Duration::from_mins(3);
