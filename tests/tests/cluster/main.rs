//! Tests on a real cluster: one box for all of them, a namespace for each. Those that wait for answers of the API server
//! and of the operator run side by side; then the others, one after the other, because latency is among the things they
//! measure.

mod ab_test;
mod admission;
mod bad_input;
mod balancing;
mod blue_green;
mod canary;
mod chart;
mod crds;
mod docs;
mod fallback;
mod federated;
mod gpu;
mod guard;
mod kill;
mod operator;
mod shadow;
mod stand;
mod steps;

use e2e::{
    cluster::{Cluster, Config, Progress, cache_dir},
    stage::{Binaries, Images, Install, Models},
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{future::Future, process::ExitCode, sync::Arc, time::Duration};

/// What all tests share.
pub struct Suite {
    /// The box.
    pub cluster: Cluster,
    /// What is loaded in it.
    pub images: Images,
    /// Where the models are on this machine.
    pub models: Models,
}

/// The box of the tests stands beside a box that someone may have up.
fn config() -> anyhow::Result<Config> {
    Ok(Config::at(cache_dir()?.join("test-box")))
}

/// How many of the tests that mostly wait run at once.
const SIDE_BY_SIDE: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        let (beside, alone) = trials(None);
        return libtest_mimic::run(&arguments, beside.into_iter().chain(alone).collect()).exit_code();
    }
    match prepare() {
        Ok(suite) => {
            let suite = Arc::new(suite);
            let (beside, alone) = trials(Some(&suite));
            let mut run = |threads, trials| {
                arguments.test_threads = Some(threads);
                libtest_mimic::run(&arguments, trials).has_failed()
            };
            let failed = run(SIDE_BY_SIDE, beside) | run(1, alone);
            // A failed run leaves the box up for a look at it; `cargo box --dir … down` takes it away.
            let down = if failed { Ok(()) } else { suite.cluster.down() };
            if let Err(error) = down {
                eprintln!("error: taking the box down: {error:#}");
                return ExitCode::FAILURE;
            }
            if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> anyhow::Result<Suite> {
    let (progress, config) = (Progress::visible(), config()?);
    let (binaries, models) = if Cluster::entered(&config) {
        (Binaries::built()?, Models::made()?)
    } else {
        let binaries = progress.stage("programs built", Binaries::build)?;
        let models = progress.stage("models trained and damaged", || Models::ensure(&binaries.worker))?;
        // Where a failed run left its box for a look, its objects would be in the way.
        Cluster::down_at(&config)?;
        (binaries, models)
    };
    let cluster = Cluster::up(&config, &progress)?;
    cluster.enter_netns()?;
    let images = progress.stage("images loaded", || Images::load(&cluster, &binaries, &models))?;
    progress.stage("operator installed", || Install::on_box(&cluster, &images))?;
    block_on(stand::edge(&cluster))?;
    Ok(Suite { cluster, images, models })
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Those that may run side by side, and those that need the machine for themselves.
fn trials(suite: Option<&Arc<Suite>>) -> (Vec<Trial>, Vec<Trial>) {
    macro_rules! trial {
        ($path:path) => {{
            let suite = suite.cloned();
            Trial::test(stringify!($path).replace("::", "/"), move || {
                let suite = suite.ok_or("no cluster")?;
                block_on($path(suite)).map_err(|error| Failed::from(format!("{error:#}")))
            })
        }};
    }
    let beside = vec![
        trial!(chart::renders_as_its_golden_files),
        trial!(chart::wrong_values_are_refused_by_name),
        trial!(chart::lint_finds_nothing),
        trial!(chart::a_second_operator_is_refused_by_name),
        trial!(docs::every_object_is_accepted),
        trial!(docs::every_block_of_values_renders),
        trial!(crds::cases_get_the_answer_that_they_name),
        trial!(admission::only_the_operator_changes_weights),
        trial!(admission::epochs_sums_and_latches_bind_the_operator_too),
        trial!(admission::every_step_of_the_route_policy),
        trial!(balancing::envoy_does_what_the_route_asks),
        trial!(bad_input::a_missing_gate_is_named_and_recovers),
        trial!(bad_input::a_missing_route_is_named_and_recovers),
        trial!(bad_input::the_second_rollout_on_a_route_is_refused),
        trial!(bad_input::a_missing_probe_set_moves_nothing),
        trial!(bad_input::models_that_cannot_be_compared_get_no_traffic),
        trial!(bad_input::a_truncated_model_is_named_and_rolled_back),
        trial!(bad_input::a_claim_with_another_digest_is_refused_and_the_right_one_serves),
        trial!(bad_input::no_traffic_holds_where_the_gate_says_so),
    ];
    let alone = vec![
        trial!(operator::an_own_route_comes_and_goes_with_the_rollout),
        trial!(operator::deletion_gives_the_route_back),
        trial!(operator::a_quiet_cluster_sees_no_write),
        trial!(operator::verbs_win_and_are_answered),
        trial!(canary::a_killed_pod_is_seen_by_the_driver),
        trial!(canary::identical_models_are_promoted),
        trial!(canary::healthy_is_promoted_damaged_is_rolled_back),
        trial!(blue_green::nobody_meets_a_damaged_model_and_both_ways_cost_nothing),
        trial!(ab_test::a_user_stays_with_one_arm),
        trial!(guard::a_defect_after_the_promotion_goes_back_to_fp16),
        // Minutes of their own: `cargo verify --long`.
        trial!(steps::pods_and_headers_of_a_step).with_ignored_flag(true),
        trial!(fallback::a_request_that_the_model_fails_is_answered_by_fp16).with_ignored_flag(true),
        trial!(federated::four_clients_and_a_coordinator_publish_a_model).with_ignored_flag(true),
        trial!(shadow::live_prompts_need_the_namespaces_consent).with_ignored_flag(true),
        trial!(gpu::a_pod_without_a_gpu_is_explained_and_goes_on).with_ignored_flag(true),
        trial!(gpu::a_model_takes_the_place_of_another).with_ignored_flag(true),
        trial!(chart::upgrade_uninstall_and_install_cost_no_request).with_ignored_flag(true),
        trial!(kill::twenty_kills_change_no_end_state).with_ignored_flag(true),
    ];
    (beside, alone)
}
