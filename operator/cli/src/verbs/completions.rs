use clap::CommandFactory;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "kubectl-bitnet", &mut std::io::stdout());
    ExitCode::SUCCESS
}
