//! What is learnt about blocks while they run: which run often and are translated again for speed, and what in them is not
//! worth its cost.

use super::cache::Translator;
use super::hot::Plan;
use super::site::{Ill, Misfit};
use super::unit::{Key, Unit};
use crate::mem::Memory;

/// What was learnt about a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Adapted {
    pub no_windows: bool,
    /// Instructions that are called: a bit each.
    pub called: u64,
    /// It is to be translated for speed.
    hot: bool,
    /// Instructions whose lookups are not worth remembering: a bit each.
    plain: u64,
}

/// How often the budget must have been used up in a block before it is translated for speed.
const SAMPLES: u32 = 2;

/// Blocks something is remembered about at most.
const MAX_ADAPTED: usize = 1 << 16;

impl Translator {
    /// Is the block at `key` to be translated for speed?
    pub(super) fn is_hot(&self, key: &Key) -> bool {
        !self.options.sample || self.adapted.get(key).is_some_and(|a| a.hot)
    }

    /// What a block to be translated for speed may use.
    pub(super) fn plan(&mut self, unit: &Unit, mem: &mut Memory) -> Plan {
        let plain = self.adapted.get(&unit.key).map_or(0, |a| a.plain);
        let n = Plan::demand(unit);
        if n == 1 || plain == u64::MAX || !self.options.remember {
            return Plan { lines: 0..0, plain };
        }
        let mut lines = self.lines.take(n);
        if lines.is_none() && self.options.sample {
            self.kill_hot(mem);
            lines = self.lines.take(n);
        }
        Plan { lines: lines.unwrap_or_default(), plain }
    }

    /// Kills the blocks that use lines of the frame: those that still run often come back.
    fn kill_hot(&mut self, mem: &mut Memory) {
        let all: Vec<u32> = self.blocks().filter(|(_, b)| !b.lines.is_empty()).map(|(id, _)| id).collect();
        for id in all {
            self.stats.evicted += 1;
            self.kill(id, mem);
        }
    }

    /// The budget was used up in the block at `key`.
    pub(crate) fn sample(&mut self, key: &Key, mem: &mut Memory) {
        let Some(id) = self.find(key) else { return };
        let Some(b) = self.blocks.get_mut(id as usize).and_then(Option::as_mut) else { return };
        b.samples += 1;
        if b.hot || b.samples < SAMPLES || !self.options.loops && !self.options.remember {
            return;
        }
        self.adapted_mut(*key).hot = true;
        self.stats.hot += 1;
        self.kill(id, mem);
    }

    fn adapted_mut(&mut self, key: Key) -> &mut Adapted {
        if self.adapted.len() >= MAX_ADAPTED {
            self.adapted.clear();
        }
        self.adapted.entry(key).or_default()
    }

    /// Lets the block of `m` be translated again without the lookup that keeps missing.
    pub(crate) fn adapt(&mut self, m: Misfit, mem: &mut Memory) {
        if !self.options.adapt {
            return;
        }
        let a = self.adapted_mut(m.block);
        let bit = 1 << (m.index & 63);
        match m.ill {
            Ill::Window if !a.no_windows => a.no_windows = true,
            Ill::Window | Ill::Lookup => a.called |= bit,
            Ill::Page => a.plain |= bit,
            Ill::Pages => a.plain = u64::MAX,
        }
        if let Some(id) = self.find(&m.block) {
            self.stats.adapted += 1;
            self.kill(id, mem);
        }
    }
}
