//! `kubectl bitnet`: watch, steer and explain model rollouts.

mod assume;
mod cluster;
mod files;
mod output;
mod providers;
mod tree;
mod verbs;

use clap::{Parser, Subcommand};
use cluster::Place;
use std::process::ExitCode;

/// Watch, steer and explain the rollouts of BitNet models.
///
/// A rollout moves traffic from a baseline to a candidate as far as the evidence allows. `status` shows where it
/// stands and what it waits for, `abort` and `rollback` end it at once, `explain` tells why a verdict was given. `lint` and
/// `simulate` say from files what a rollout will do before it runs.
///
/// Exit codes: 0 done; 1 error (no such rollout, no permission, refused; `lint`: a gate cannot decide); 2 wrong usage (`lint`:
/// also files that cannot be read or are refused); 3 the rollout is not healthy (`status --exit-code`), or a rollout would start (`diff --exit-code`); 4 the operator did not
/// answer in time.
#[derive(Parser)]
#[command(name = "kubectl-bitnet", bin_name = "kubectl bitnet", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List rollouts: phase, step, weight, verdict and the estimates of their signals.
    Get(verbs::get::Args),
    /// Show one rollout as a tree: arms, weights, and each signal's numbers. `--watch` follows it.
    Status(verbs::status::Args),
    /// End the pause of the current step; `--full` goes to 100 % now, without the missing evidence.
    Promote(verbs::steer::Promote),
    /// Go to 100 % now, without the evidence that is missing; recorded with your name.
    PromoteFull(verbs::steer::Target),
    /// Stop at the current weight. A rollback still happens when the evidence calls for one.
    Pause(verbs::steer::Target),
    /// Go on after a pause.
    Resume(verbs::steer::Target),
    /// All traffic back to the stable revision, now, in any phase.
    Abort(verbs::steer::Target),
    /// All traffic back to the fp16 baseline, now, in any phase, also after a promotion.
    Rollback(verbs::steer::Target),
    /// Start a new attempt with fresh evidence, for a candidate that was rolled back or held.
    Retry(verbs::steer::Target),
    /// Set the spec back to the model that serves: an edit of the spec, not a verb of the operator.
    Undo(verbs::undo::Args),
    /// Show what the spec, or a file, changes against what serves, and whether that starts a rollout.
    Diff(verbs::diff::Args),
    /// Tell in words why a verdict was given (without a decision: the rollout's last one), or what a reason means.
    Explain(verbs::explain::Args),
    /// List a rollout's decisions, newest first.
    History(verbs::history::Args),
    /// Follow all rollouts, with their numbers as they go.
    Top(verbs::top::Args),
    /// Open the operator's page, through a forwarded port.
    Dashboard(verbs::dashboard::Args),
    /// Write a gate and a rollout to begin with: `kubectl bitnet create … | kubectl apply -f -`.
    Create(verbs::create::Args),
    /// Predict a rollout from files, without a cluster: time to promote, false rollbacks, how soon defects are found.
    Simulate(verbs::simulate::Args),
    /// Print what Istio, ingress-nginx or InferencePools would need for one step of a rollout; nothing is applied.
    Render(verbs::render::Args),
    /// Find gates in files that cannot decide, without a cluster.
    Lint(verbs::lint::Args),
    /// Print the completion script of a shell, or of kubectl.
    Completions(verbs::completions::Args),
    /// What kubectl asks for when it completes.
    #[command(name = "__complete", hide = true)]
    Complete(verbs::completions::Words),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::Get(args) => verbs::get::run(&cli.place, &args).await,
        Verb::Status(args) => verbs::status::run(&cli.place, &args).await,
        Verb::Promote(args) => verbs::steer::promote(&cli.place, &args).await,
        Verb::PromoteFull(target) => verbs::steer::steer(&cli.place, &target, "promote-full").await,
        Verb::Pause(target) => verbs::steer::steer(&cli.place, &target, "pause").await,
        Verb::Resume(target) => verbs::steer::steer(&cli.place, &target, "resume").await,
        Verb::Abort(target) => verbs::steer::steer(&cli.place, &target, "abort").await,
        Verb::Rollback(target) => verbs::steer::steer(&cli.place, &target, "rollback").await,
        Verb::Retry(target) => verbs::steer::steer(&cli.place, &target, "retry").await,
        Verb::Undo(args) => verbs::undo::run(&cli.place, &args).await,
        Verb::Diff(args) => verbs::diff::run(&cli.place, &args).await,
        Verb::Top(args) => verbs::top::run(&cli.place, &args).await,
        Verb::Dashboard(args) => verbs::dashboard::run(&cli.place, &args).await,
        Verb::Explain(args) => verbs::explain::run(&cli.place, &args).await,
        Verb::History(args) => verbs::history::run(&cli.place, &args).await,
        Verb::Create(args) => verbs::create::run(cli.place.namespace.as_deref(), args),
        Verb::Simulate(args) => verbs::simulate::run(&args),
        Verb::Render(args) => verbs::render::run(&args),
        Verb::Lint(args) => Ok(verbs::lint::run(&args)),
        Verb::Completions(args) => Ok(verbs::completions::run(&args)),
        Verb::Complete(words) => Ok(verbs::completions::complete(&cli.place, &words).await),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
