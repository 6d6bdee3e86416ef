//! Completion: of this program by itself, and as kubectl asks plugins for it, names of objects included.

use crate::{Cli, cluster::Place};
use bitnet_api::v1alpha1::{ModelRollout, RolloutDecision};
use clap::{Command, CommandFactory};
use kube::{ResourceExt, api::ListParams};
use std::{process::ExitCode, time::Duration};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A shell: the script that completes `kubectl-bitnet`. `kubectl`: the program that completes `kubectl bitnet …`, to be
    /// put on PATH as `kubectl_complete-bitnet` (executable).
    target: Target,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
    Kubectl,
}

/// What kubectl hands over: the words after `kubectl bitnet`, the last one being completed.
#[derive(clap::Args)]
pub(crate) struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// A cluster that is slower than this completes nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of cobra's directives: do not complete files.
const NO_FILES: &str = ":4";

pub(crate) fn run(args: &Args) -> ExitCode {
    use clap_complete::Shell;
    let shell = match args.target {
        Target::Bash => Shell::Bash,
        Target::Elvish => Shell::Elvish,
        Target::Fish => Shell::Fish,
        Target::Powershell => Shell::PowerShell,
        Target::Zsh => Shell::Zsh,
        Target::Kubectl => {
            println!(
                "#!/bin/sh\n# kubectl runs this for `kubectl bitnet <TAB>`.\nexec kubectl-bitnet __complete -- \"$@\""
            );
            return ExitCode::SUCCESS;
        }
    };
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-bitnet", &mut std::io::stdout());
    ExitCode::SUCCESS
}

/// Answers kubectl: a candidate per line, then a directive. An error completes nothing.
pub(crate) async fn complete(place: &Place, words: &Words) -> ExitCode {
    let command = Cli::command();
    let (before, last) = match words.words.split_last() {
        Some((last, before)) => (before, last.as_str()),
        None => (&[][..], ""),
    };
    let mut found = match wanted(&command, before, last) {
        Wanted::Words(words) => words,
        Wanted::Rollouts => {
            let place = place.or_from(before);
            tokio::time::timeout(PATIENCE, rollouts(&place)).await.unwrap_or_default()
        }
        Wanted::RolloutsAndDecisions => {
            let place = place.or_from(before);
            tokio::time::timeout(PATIENCE, rollouts_and_decisions(&place)).await.unwrap_or_default()
        }
    };
    found.retain(|word| word.starts_with(last));
    for word in found {
        println!("{word}");
    }
    println!("{NO_FILES}");
    ExitCode::SUCCESS
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Words(Vec<String>),
    Rollouts,
    RolloutsAndDecisions,
}

/// Flags of ours that take a value in a word of its own.
fn takes_value(command: &Command, flag: &str) -> bool {
    let long = flag.strip_prefix("--");
    let short = flag.strip_prefix('-').and_then(|rest| rest.chars().next());
    command.get_arguments().any(|arg| {
        let named = match long {
            Some(long) => arg.get_long() == Some(long),
            None => flag.len() == 2 && short.is_some() && arg.get_short() == short,
        };
        named && arg.get_action().takes_values()
    })
}

fn wanted(root: &Command, before: &[String], last: &str) -> Wanted {
    let mut verb: Option<&Command> = None;
    let mut given = 0;
    let mut value_of: Option<String> = None;
    for word in before {
        let here = verb.unwrap_or(root);
        if value_of.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            if !word.contains('=') && (takes_value(here, word) || takes_value(root, word)) {
                value_of = Some(word.clone());
            }
        } else if verb.is_none() {
            verb = root.find_subcommand(word);
        } else {
            given += 1;
        }
    }
    let here = verb.unwrap_or(root);
    if let Some(flag) = value_of {
        let values = here.get_arguments().filter(|arg| {
            arg.get_long().is_some_and(|long| flag == format!("--{long}"))
                || arg.get_short().is_some_and(|short| flag == format!("-{short}"))
        });
        let values = values.flat_map(clap::Arg::get_possible_values).map(|value| value.get_name().to_owned());
        return Wanted::Words(values.collect());
    }
    if last.starts_with('-') {
        let longs = here.get_arguments().chain(root.get_arguments()).filter_map(clap::Arg::get_long);
        return Wanted::Words(longs.map(|long| format!("--{long}")).chain(["--help".to_owned()]).collect());
    }
    match verb {
        None => {
            let verbs = root.get_subcommands().filter(|verb| !verb.is_hide_set());
            Wanted::Words(verbs.map(|verb| verb.get_name().to_owned()).collect())
        }
        Some(_) if given > 0 => Wanted::Words(Vec::new()),
        Some(verb) => match verb.get_name() {
            "explain" => Wanted::RolloutsAndDecisions,
            "create" | "simulate" | "lint" | "top" => Wanted::Words(Vec::new()),
            "completions" => {
                let shells = verb.get_positionals().flat_map(clap::Arg::get_possible_values);
                Wanted::Words(shells.map(|value| value.get_name().to_owned()).collect())
            }
            _ => Wanted::Rollouts,
        },
    }
}

async fn rollouts(place: &Place) -> Vec<String> {
    let Ok(connection) = place.connect().await else { return Vec::new() };
    let list = connection.api::<ModelRollout>().list_metadata(&ListParams::default().limit(500)).await;
    list.map(|list| list.items.iter().map(ResourceExt::name_any).collect()).unwrap_or_default()
}

async fn rollouts_and_decisions(place: &Place) -> Vec<String> {
    let mut names = rollouts(place).await;
    if let Ok(connection) = place.connect().await
        && let Ok(list) = connection.api::<RolloutDecision>().list_metadata(&ListParams::default().limit(500)).await
    {
        names.extend(list.items.iter().map(ResourceExt::name_any));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Wanted {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (last, before) = words.split_last().unwrap();
        wanted(&Cli::command(), before, last)
    }

    #[test]
    fn verbs_flags_values_and_names_are_told_apart() {
        let Wanted::Words(verbs) = of(&[""]) else { panic!("verbs are words") };
        assert!(verbs.contains(&"promote".into()) && !verbs.contains(&"__complete".into()), "{verbs:?}");
        let Wanted::Words(flags) = of(&["get", "--"]) else { panic!("flags are words") };
        for flag in ["--namespace", "--all-namespaces", "--help"] {
            assert!(flags.contains(&flag.into()), "{flag}: {flags:?}");
        }
        assert_eq!(of(&["get", "-o", ""]), Wanted::Words(vec!["json".into(), "yaml".into(), "wide".into()]));
        assert_eq!(of(&["status", ""]), Wanted::Rollouts);
        assert_eq!(of(&["-n", "team", "abort", "ch"]), Wanted::Rollouts);
        assert_eq!(of(&["abort", "--timeout", "5", ""]), Wanted::Rollouts);
        assert_eq!(of(&["abort", "--no-wait", ""]), Wanted::Rollouts);
        assert_eq!(of(&["abort", "chat", ""]), Wanted::Words(Vec::new()), "one name is enough");
        assert_eq!(of(&["explain", ""]), Wanted::RolloutsAndDecisions);
    }

    #[test]
    fn the_namespace_of_the_line_is_looked_into() {
        let place = Place { namespace: None, context: None, kubeconfig: None };
        let line = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let found = place.or_from(&line(&["-n", "team", "--context=prod", "status"]));
        assert_eq!((found.namespace.as_deref(), found.context.as_deref()), (Some("team"), Some("prod")));
        assert_eq!(place.or_from(&line(&["--namespace=x"])).namespace.as_deref(), Some("x"));
    }
}
