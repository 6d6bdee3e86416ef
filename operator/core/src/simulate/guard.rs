use super::{World, world::Running};
use crate::evidence::{
    ProbeSettings,
    guard::{Guard, GuardSettings},
};

/// Watches a promoted model for at most `limit` ticks: the tick of the alarm, `None` without one. Of the world count the
/// prompts, the pairs with their latency as a multiple of fp16's, and the tick after which a defect begins.
pub fn watch(settings: &GuardSettings, world: &World, limit: u32, seed: u64) -> Option<u32> {
    let probes = ProbeSettings {
        config_map: String::new(),
        key: String::new(),
        per_tick: settings.per_tick,
        max_tokens: 1,
        positions: 1,
        pairs: settings.pairs,
        pair_tokens: 1,
    };
    let world = World { history: 0, ..*world };
    let mut running = Running::new(&world, seed);
    let mut guard = Guard::new(settings);
    (1..=limit).find(|&tick| {
        let now = world.at(tick);
        let found = running.probes(&probes, settings.tail_min, &now, tick);
        guard.step(settings, u64::from(tick), Some(&found)).alarm.is_some()
    })
}
