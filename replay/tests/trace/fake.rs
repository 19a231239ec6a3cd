//! A machine small enough to see through, which uses the input port exactly as the engine must: the hash point,
//! timers, one poll, then idle or run up to the next point of interest. It panics on a livelock.

use retrovisor_core::clock::{Clock, ClockKind};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::{OutputPort, OutputSink};
use retrovisor_core::{GuestTime, Icount};

/// Mixes `x` (SplitMix64's finaliser).
pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A fault planted in a replaying machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A state bit flips.
    State,
    /// One more random number is asked for.
    Ask,
    /// Random numbers are not asked for any more.
    DontAsk,
    /// A byte of output is wrong.
    Output,
    /// Halts with timers off.
    Halt,
    /// Guest time jumps.
    Time,
    /// A power-off.
    PowerOff,
}

pub struct Fake {
    pub icount: u64,
    pub clock: Clock,
    pub state: u64,
    halted: bool,
    timer: Option<GuestTime>,
    pub input: Box<dyn InputPort>,
    output: Box<dyn OutputSink>,
    interval: u64,
    /// Most instructions between two polls.
    pub slice: u64,
    hashed: u64,
    /// Hash points passed.
    pub hashes: u64,
    pub power_off_at: u64,
    pub fault: Option<(u64, Fault)>,
    dont_ask: bool,
}

impl Fake {
    pub fn new(config: &MachineConfig, input: Box<dyn InputPort>, output: Box<dyn OutputSink>) -> Self {
        let mut clock = Clock::new(config.clock);
        clock.ns_per_insn = config.ns_per_insn;
        Self {
            icount: 0,
            clock,
            state: config.seed,
            halted: false,
            timer: Some(GuestTime(700)),
            input,
            output,
            interval: config.hash_interval,
            slice: config.slice,
            hashed: 0,
            hashes: 0,
            power_off_at: u64::MAX,
            fault: None,
            dont_ask: false,
        }
    }

    pub fn when(&self) -> When {
        When { icount: Icount(self.icount), time: self.clock.now(self.icount) }
    }

    pub fn hash(&self) -> StateHash {
        let timer = self.timer.map_or(0, |t| t.0);
        let low = mix(self.state ^ mix(self.when().time.0) ^ mix(timer ^ u64::from(self.halted)));
        StateHash(u128::from(mix(low)) << 64 | u128::from(low))
    }

    fn note(&mut self, x: u64) {
        self.state = mix(self.state ^ x)
    }

    fn apply(&mut self, event: &InputEvent) {
        match event {
            InputEvent::Tick { time } => self.clock.advance_to(self.icount, *time),
            InputEvent::Serial { bytes, .. }
            | InputEvent::Key { bytes }
            | InputEvent::WritePhys { bytes, .. } => {
                bytes.iter().for_each(|b| self.note(u64::from(*b)));
                self.halted = false;
            }
            InputEvent::WriteReg { value, .. } => self.note(*value as u64),
            InputEvent::PowerButton | InputEvent::Reset | InputEvent::Nmi => {
                self.note(99);
                self.halted = false;
            }
        }
    }

    /// The hash point, then the timers.
    pub fn arrive(&mut self) -> bool {
        let mut same = true;
        if self.icount.is_multiple_of(self.interval) && self.icount != self.hashed {
            self.hashed = self.icount;
            self.hashes += 1;
            let (now, hash) = (self.when(), self.hash());
            same = self.input.check(now, hash);
        }
        self.advance();
        same
    }

    /// The owner changes the machine, as a debugger does.
    pub fn inject(&mut self, event: &InputEvent) {
        self.arrive();
        self.apply(event);
        let now = self.when();
        self.input.inject(now, event);
    }

    fn advance(&mut self) {
        while let Some(t) = self.timer.filter(|t| *t <= self.when().time) {
            self.note(t.0);
            self.halted = false;
            self.timer = Some(t + (300 + self.state % 2000));
        }
    }

    fn step(&mut self) {
        self.state = mix(self.state);
        let now = self.when();
        match self.state % 97 {
            0 => self.halted = true,
            1..4 if self.clock.kind == ClockKind::Host => {
                let t = self.clock.read(now, &mut *self.input);
                self.note(t.0);
            }
            4 | 5 if !self.dont_ask => {
                let r = self.input.answer(now, Query::Random);
                self.note(r);
            }
            6 => self.output.write(now, OutputPort::Serial(0), &[self.state as u8 >> 1]),
            7 => self.output.write(now, OutputPort::DebugCon, b"x"),
            8 if self.state & 0x700 == 0 => self.timer = None,
            9 => self.timer = Some(now.time + self.state % 1000),
            _ => {}
        }
        self.icount += 1;
    }

    fn plant(&mut self) -> Option<VmExit> {
        let (_, fault) = self.fault.filter(|f| f.0 <= self.icount)?;
        self.fault = None;
        let now = self.when();
        match fault {
            Fault::State => self.state ^= 1 << 40,
            Fault::Ask => {
                self.input.answer(now, Query::BootWallTime);
            }
            Fault::DontAsk => self.dont_ask = true,
            Fault::Output => self.output.write(now, OutputPort::Serial(0), b"!"),
            Fault::Halt => (self.halted, self.timer) = (true, None),
            Fault::Time => self.clock.skew += 1,
            Fault::PowerOff => return Some(VmExit::PowerOff),
        }
        None
    }

    pub fn run(&mut self, until: Option<u64>) -> VmExit {
        let mut stuck = 0;
        loop {
            if until.is_some_and(|u| self.icount >= u) {
                return VmExit::Reached;
            }
            let before = self.when();
            if let Some(exit) = self.boundary(until) {
                return exit;
            }
            stuck = if self.when() == before { stuck + 1 } else { 0 };
            assert!(stuck < 1000, "livelock at {before:?}");
        }
    }

    /// One round of the engine's loop.
    fn boundary(&mut self, until: Option<u64>) -> Option<VmExit> {
        if !self.arrive() {
            return Some(VmExit::Diverged);
        }
        self.input.set_deadline(self.timer);
        // After each event timers come first again: whether `poll` says "nothing" in between must not be visible.
        let now = self.when();
        match self.input.poll(now) {
            Poll::Event(e) => {
                self.apply(&e);
                return None;
            }
            Poll::None => {}
            Poll::Interrupt => return Some(VmExit::Interrupted),
            Poll::End => return Some(VmExit::InputEnded),
        }
        if self.icount >= self.power_off_at {
            return Some(VmExit::PowerOff);
        }
        if let Some(exit) = self.plant() {
            return Some(exit);
        }
        if self.halted { self.idle() } else { self.execute(until) }
    }

    fn idle(&mut self) -> Option<VmExit> {
        let now = self.when();
        match (self.input.idle(now, self.timer), self.timer) {
            (Idle::Deadline, Some(t)) => self.clock.advance_to(self.icount, t),
            (Idle::Deadline, None) => panic!("a deadline that was not there"),
            (Idle::Input(t), deadline) => {
                assert!(t >= now.time && deadline.is_none_or(|d| t <= d), "{t} {now:?} {deadline:?}");
                self.clock.advance_to(self.icount, t);
            }
            (Idle::Interrupted, _) => return Some(VmExit::Interrupted),
            (Idle::End, _) => return Some(VmExit::InputEnded),
        }
        None
    }

    fn execute(&mut self, until: Option<u64>) -> Option<VmExit> {
        let hash_point = (self.icount / self.interval + 1) * self.interval;
        let timer = self.timer.and_then(|t| self.clock.icount_at(t)).map(|i| i.0);
        let fault = self.fault.map(|f| f.0);
        let next = [until, self.input.next_poll().map(|i| i.0), timer, Some(self.power_off_at), fault];
        let limit = next.into_iter().flatten().fold(hash_point.min(self.icount + self.slice), u64::min);
        // An instruction that armed a timer or moved guest time ends the block: timers must not depend on slices.
        let (timer, skew) = (self.timer, self.clock.skew);
        while self.icount < limit && !self.halted && (self.timer, self.clock.skew) == (timer, skew) {
            self.step();
        }
        None
    }
}
