//! Running programs, with errors that say which one failed and what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The command line as a person would type it.
pub(super) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs to the end and returns standard output; a failure carries the end of standard error.
pub(super) fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("could not start `{}`", line(command)))?;
    checked(command, &output)
}

/// Like [`run`], with `input` on standard input.
pub(super) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    run_with_writer(command, |pipe| Ok(pipe.write_all(input)?))
}

/// Like [`run`], while `write` feeds standard input.
pub(super) fn run_with_writer(
    command: &mut Command,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let mut stdin = child.stdin.take().context("the child has no input")?;
    let written = write(&mut stdin);
    drop(stdin);
    let output = child.wait_with_output()?;
    // The child's own words explain a broken pipe better than the pipe does.
    let said = checked(command, &output)?;
    written.with_context(|| format!("could not feed `{}`", line(command)))?;
    Ok(said)
}

fn checked(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = if stderr.trim().is_empty() { stdout.as_str() } else { &*stderr };
    bail!("`{}` ended with {}: {}", line(command), output.status, tail(said, 15))
}

/// The last `count` lines.
pub(super) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
