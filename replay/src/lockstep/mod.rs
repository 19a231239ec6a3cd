//! Two engines in step: a machine on the translator goes first, and the same machine on the interpreter follows it
//! exactly as far; then everything the guest could see must be the same.
//!
//! The translator's machine decides how far a step goes, because only it knows where its blocks end. After each step
//! all registers of all vCPUs, the clock and the memory written in the step are compared; now and then, and at the
//! run's end, the devices and all of memory. Memory is compared by page, and only the pages that either machine wrote:
//! [`Memory::take_written`](retrovisor_core::mem::Memory::take_written) knows them.
//!
//! Map: `registers` vCPUs compared and shown | `report` what is said about a difference | `log` the inputs of a live
//! run for the second machine. A replay needs no log: each machine plays the trace by itself.

mod log;
mod registers;
mod report;

pub use log::{Follower, InputLog, Leader};
pub(crate) use report::Scene;
pub use report::{Mismatch, Names};

use retrovisor_core::Icount;
use retrovisor_core::engine::Engine;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::vcpu::Vcpu;

/// Instructions between two comparisons of the devices.
const DEVICES_EVERY: u64 = 1 << 22;
/// Instructions between two comparisons of all memory, which finds writes that no one noted.
const MEMORY_EVERY: u64 = 1 << 28;

/// How far a step goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stride {
    /// So many blocks of the translator (at least one).
    Blocks(u32),
    /// So many instructions (at least one), whatever blocks they are in: blocks that are linked run linked.
    Instructions(u64),
}

impl Default for Stride {
    fn default() -> Self {
        Stride::Blocks(1)
    }
}

/// What a lockstep run has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Comparisons.
    pub steps: u64,
    /// Blocks of the translator, where they decide.
    pub blocks: u64,
    /// Pages of memory compared because they were written.
    pub pages: u64,
    /// Comparisons of the devices.
    pub devices: u64,
}

/// The machine that follows, and what is needed to compare it with the one that leads.
pub struct Lockstep {
    /// On the interpreter.
    reference: Vm,
    stride: Stride,
    /// The vCPU that was about to execute when the step began.
    before: Vcpu,
    /// Slab pages written in the step.
    pages: Vec<usize>,
    next_devices: u64,
    next_memory: u64,
    stats: Stats,
    /// The inputs of a live run.
    log: Option<InputLog>,
}

impl Lockstep {
    /// Makes `reference` follow `leader`. Both are of the same description and stand at the same point, and their ports
    /// say the same.
    pub fn new(leader: &mut Vm, mut reference: Vm, stride: Stride) -> Self {
        reference.engine = Engine::Interp;
        leader.sys.mem.note_written();
        reference.sys.mem.note_written();
        let at = reference.sys.icount;
        let before = reference.vcpus[reference.current].clone();
        Self {
            reference,
            stride,
            before,
            pages: Vec::new(),
            next_devices: at + DEVICES_EVERY,
            next_memory: at + MEMORY_EVERY,
            stats: Stats::default(),
            log: None,
        }
    }

    /// The reference listens to this log: a difference in what it asks goes into the report.
    pub fn hears(mut self, log: InputLog) -> Self {
        self.log = Some(log);
        self
    }

    /// Compares every `n` blocks from now on.
    pub fn step_blocks(&mut self, n: u32) {
        self.stride = Stride::Blocks(n);
    }

    /// The machine on the interpreter.
    pub fn reference(&mut self) -> &mut Vm {
        &mut self.reference
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Runs both machines as `leader.run(until)` would run one. If it does not return `Reached`, the machines stand
    /// where the run ended, or, where it was only interrupted, the reference stands a little before.
    ///
    /// # Errors
    /// The first difference, as soon as it shows in a comparison.
    pub fn run(&mut self, leader: &mut Vm, until: Option<Icount>) -> Result<VmExit, Box<Mismatch>> {
        while until.is_none_or(|u| leader.sys.icount < u.0) {
            match self.step(leader, until)? {
                VmExit::Reached => {}
                exit => return Ok(exit),
            }
        }
        Ok(VmExit::Reached)
    }

    /// Runs both machines for one step, at most to `until`, which is ahead, and compares them.
    ///
    /// # Errors
    /// The difference.
    pub fn step(&mut self, leader: &mut Vm, until: Option<Icount>) -> Result<VmExit, Box<Mismatch>> {
        let from = self.reference.sys.icount;
        let vcpu = self.reference.current;
        self.before.clone_from(&self.reference.vcpus[vcpu]);
        let exit = self.lead(leader, until);
        match exit {
            // No event of the guest: the reference would not stop here, and is in no hurry.
            VmExit::Interrupted | VmExit::Breakpoint(_) | VmExit::Watchpoint(_) | VmExit::Exception(_) => {
                return Ok(exit);
            }
            _ => {}
        }
        let found = self.follow(leader, exit);
        self.stats.steps += 1;
        self.take_pages(leader);
        let at = leader.sys.icount;
        let over = exit != VmExit::Reached;
        let mut same = found == exit && self.same(leader);
        if over || at >= self.next_devices {
            self.next_devices = at + DEVICES_EVERY;
            self.stats.devices += 1;
            same = same && leader.save_state() == self.reference.save_state();
        }
        if over || at >= self.next_memory {
            self.next_memory = at + MEMORY_EVERY;
            same = same && leader.sys.mem.ram.as_slice() == self.reference.sys.mem.ram.as_slice();
        }
        if same {
            return Ok(exit);
        }
        let (names, from) = (Names::ENGINES, Icount(from));
        let scene = Scene { names, from, vcpu, before: &self.before, exits: (found, exit) };
        let mut mismatch = scene.report(leader, &self.reference);
        mismatch.what.extend(self.log.as_ref().and_then(InputLog::stray));
        Err(Box::new(mismatch))
    }

    /// Lets the translator's machine go one step.
    fn lead(&mut self, leader: &mut Vm, until: Option<Icount>) -> VmExit {
        let from = leader.sys.icount;
        let until = until.unwrap_or(Icount(u64::MAX));
        match self.stride {
            Stride::Instructions(n) => leader.run(Some(until.min(Icount(from.saturating_add(n.max(1)))))),
            Stride::Blocks(n) => self.lead_blocks(leader, until, n.max(1)),
        }
    }

    fn lead_blocks(&mut self, leader: &mut Vm, until: Icount, blocks: u32) -> VmExit {
        let (from, mut left) = (leader.sys.icount, blocks);
        // An idle stretch may end at the same instruction; comparing there would compare half of it.
        while (left > 0 || leader.sys.icount == from) && leader.sys.icount < until.0 {
            left = left.saturating_sub(1);
            self.stats.blocks += 1;
            match leader.run_block(Some(until)) {
                VmExit::Reached => {}
                exit => return exit,
            }
        }
        VmExit::Reached
    }

    /// Brings the reference to where the translator's machine stands, and through the end of the run if that is where
    /// it came; how that went.
    fn follow(&mut self, leader: &Vm, exit: VmExit) -> VmExit {
        self.reference.hooks.stop_triple_fault = leader.hooks.stop_triple_fault;
        let to = leader.sys.icount;
        let reached = self.reference.run(Some(Icount(to)));
        if reached == VmExit::Reached && exit != VmExit::Reached {
            return self.reference.run(Some(Icount(to + 1)));
        }
        reached
    }

    /// Collects the pages either machine wrote.
    fn take_pages(&mut self, leader: &mut Vm) {
        self.pages.clear();
        leader.sys.mem.take_written(&mut self.pages);
        self.reference.sys.mem.take_written(&mut self.pages);
        self.pages.sort_unstable();
        self.pages.dedup();
        self.stats.pages += self.pages.len() as u64;
    }

    /// Do the machines agree in all that is compared after every step?
    fn same(&self, leader: &Vm) -> bool {
        let (a, b) = (&self.reference, leader);
        (a.sys.icount, a.sys.clock.skew, a.current) == (b.sys.icount, b.sys.clock.skew, b.current)
            && a.sys.mem.a20_mask == b.sys.mem.a20_mask
            && a.sys.board.deadline() == b.sys.board.deadline()
            && a.vcpus.len() == b.vcpus.len()
            && a.vcpus.iter().zip(&b.vcpus).all(|(a, b)| registers::same(a, b))
            && self.pages.iter().all(|p| a.sys.mem.ram.page(*p) == b.sys.mem.ram.page(*p))
    }
}
