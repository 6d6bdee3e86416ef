//! The cluster's own processes: started apart from the terminal, logged to files, found again by their mark.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::{Layout, MARKER};
use super::tools::Tools;
use super::{command, netns};

/// Starts and watches the processes of one box.
#[derive(Debug)]
pub(super) struct Supervisor<'a> {
    pub(super) layout: &'a Layout,
    pub(super) tools: &'a Tools,
}

/// A process of the box, as its file in `pids` names it.
#[derive(Debug, Clone)]
pub struct Process {
    /// What it is, for example `etcd`.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// Whether it runs.
    pub alive: bool,
}

impl Supervisor<'_> {
    /// Starts a tool inside the network namespace; it outlives this process and does not hear Ctrl-C.
    pub(super) fn start(&self, name: &str, program: &str, args: &[&str]) -> Result<()> {
        let log = File::create(self.layout.logs().join(format!("{name}.log")))?;
        let program = self.tools.program(program)?;
        let inner = netns::inside(self.layout, program, args);
        let mut command = Command::new("setsid");
        command.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let run = self.layout.run();
        let mut child = command
            .current_dir(&run)
            .env("PATH", self.tools.search_path()?)
            .env("TMPDIR", run.join("tmp"))
            .env(MARKER, &run)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        fs::write(self.layout.pids().join(name), child.id().to_string())?;
        // Collects the exit status, so that a dead process is not kept as a zombie for as long as we live.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Tries until `ready`, fails at once if the process `name` has died, and then shows the end of its log.
    pub(super) fn wait(&self, name: &str, limit: Duration, mut ready: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        let mut last = None;
        loop {
            match ready(self) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = Some(error),
            }
            let alive = list(self.layout)?.iter().any(|process| process.name == name && is_running(process.pid));
            if !alive || begin.elapsed() > limit {
                let why = if alive { "is not ready in time" } else { "has died" };
                let path = self.layout.logs().join(format!("{name}.log"));
                let log = fs::read_to_string(&path).unwrap_or_default();
                let last = last.map(|error| format!("\nlast try: {error:#}")).unwrap_or_default();
                bail!("{name} {why}; the end of {}:\n{}{last}", path.display(), command::tail(&log, 15));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `kubectl` as the administrator.
    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        command::run(&mut self.kubectl_command(args)?)
    }

    /// `kubectl apply` of a manifest.
    pub(super) fn apply(&self, manifest: &str) -> Result<String> {
        command::run_with_input(&mut self.kubectl_command(&["apply", "-f", "-"])?, manifest.as_bytes())
    }

    pub(super) fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = netns::inside(self.layout, self.tools.program("kubectl")?, args);
        command.env("KUBECONFIG", self.layout.kubeconfig());
        Ok(command)
    }

    pub(super) fn helm_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = netns::inside(self.layout, self.tools.program("helm")?, args);
        // Helm's own files stay in the box.
        command.env("KUBECONFIG", self.layout.kubeconfig()).env("HELM_CACHE_HOME", self.layout.run().join("helm"));
        command.env("HELM_CONFIG_HOME", self.layout.run().join("helm"));
        command.env("HELM_DATA_HOME", self.layout.run().join("helm"));
        Ok(command)
    }

    pub(super) fn ctr(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.tools.program("ctr")?);
        command.arg("-a").arg(self.layout.containerd_socket()).args(["-n", "k8s.io"]).args(args);
        // A mount that outlives a killed ctr then lies in the box, where `down` finds it.
        command.env("TMPDIR", self.layout.run().join("tmp"));
        Ok(command)
    }
}

/// All processes that `up` started.
pub(super) fn list(layout: &Layout) -> Result<Vec<Process>> {
    let Ok(entries) = fs::read_dir(layout.pids()) else {
        return Ok(Vec::new());
    };
    let mut processes = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // An unreadable number is a file that was being written when `up` was killed.
        if let Ok(pid) = fs::read_to_string(&path).unwrap_or_default().trim().parse() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            processes.push(Process { name, pid, alive: is_running(pid) && is_marked(layout, pid) });
        }
    }
    processes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(processes)
}

/// Numbers of the processes of this machine.
pub fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether the process exists and is more than a zombie.
pub(super) fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the program's name, which stands in parentheses and may itself contain some.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None))
}

/// Whether the process was started by this box, or by one that was.
pub(super) fn is_marked(layout: &Layout, pid: u32) -> bool {
    let mark = format!("{MARKER}={}", layout.run().display());
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}
