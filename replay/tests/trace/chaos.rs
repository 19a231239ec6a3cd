//! An input port that makes up a wild but seeded run: events at odd moments, idle waits that end in every way.

use crate::fake::{Fake, Fault, mix};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::NullSink;
use retrovisor_core::{GuestTime, Icount};
use retrovisor_replay::{ExitReason, Mailbox, PlayMonitor, Player, Recording, Trace};
use std::collections::VecDeque;
use std::sync::Arc;

pub struct Chaos {
    rng: u64,
    host: bool,
    time: u64,
    deadline: Option<GuestTime>,
    queue: VecDeque<InputEvent>,
    /// One event in so many polls.
    rarity: u64,
}

impl Chaos {
    pub fn new(seed: u64, clock: ClockKind) -> Self {
        let host = clock == ClockKind::Host;
        Self { rng: mix(seed), host, time: 0, deadline: None, queue: VecDeque::new(), rarity: 20 }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng = mix(self.rng);
        (self.rng >> 8) % n
    }

    fn event(&mut self) -> InputEvent {
        let bytes = |c: &mut Self| (0..=c.below(9)).map(|_| c.below(256) as u8).collect();
        match self.below(7) {
            0 => InputEvent::Key { bytes: bytes(self) },
            1 => InputEvent::Nmi,
            2 => InputEvent::PowerButton,
            3 => InputEvent::Reset,
            _ => InputEvent::Serial { port: self.below(2) as u8, bytes: bytes(self) },
        }
    }

    fn host_time(&mut self, now: When) -> u64 {
        self.time = self.time.max(now.time.0) + self.below(300);
        self.time
    }
}

impl InputPort for Chaos {
    fn poll(&mut self, now: When) -> Poll {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Event(event);
        }
        let time = GuestTime(self.host_time(now));
        if self.host && self.deadline.is_some_and(|d| d <= time) {
            self.deadline = None;
            return Poll::Event(InputEvent::Tick { time });
        }
        match self.below(self.rarity) {
            0 => Poll::Event(self.event()),
            1 => Poll::Interrupt,
            _ => Poll::None,
        }
    }
    fn next_poll(&self) -> Option<Icount> {
        None
    }
    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.deadline = deadline
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        match query {
            Query::HostTime => self.host_time(now),
            _ => mix(self.rng ^ now.icount.0),
        }
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        let room = deadline.map_or(5000, |d| d.0.saturating_sub(now.time.0));
        match self.below(5) {
            0 => Idle::Interrupted,
            1 | 2 if room > 1 => {
                let t = now.time + (1 + self.below(room - 1));
                let event = self.event();
                self.queue.push_back(event);
                Idle::Input(t)
            }
            _ if deadline.is_some() => Idle::Deadline,
            _ => Idle::Interrupted,
        }
    }
}

pub fn config(seed: u64, clock: ClockKind) -> MachineConfig {
    MachineConfig {
        seed,
        clock,
        ns_per_insn: 1 + seed % 3,
        hash_interval: 512,
        slice: 100,
        ..Default::default()
    }
}

pub fn images() -> Images {
    Images {
        kernel: Some((0..3000u32).map(|i| mix(u64::from(i)) as u8).collect()),
        initrd: Some(vec![9; 500]),
        cmdline: "console=ttyS0".into(),
        kernel_name: "vmlinuz".into(),
        bios: None,
    }
}

/// A recorded run of the fake machine.
pub struct Recorded {
    pub bytes: Vec<u8>,
    /// Hash points the machine passed.
    pub hashes: u64,
    /// Final point and state.
    pub end: (When, u64),
}

/// Records `insns` instructions of chaos; every interruption may come with a debugger's write or an early frame.
pub fn record(seed: u64, clock: ClockKind, insns: u64, power_off: bool) -> Recorded {
    let config = config(seed, clock);
    let (recording, file) = Recording::in_memory(&config, &images()).unwrap();
    let port = recording.port(Chaos::new(seed, clock));
    let mut vm = Fake::new(&config, Box::new(port), Box::new(recording.output(NullSink)));
    if power_off {
        vm.power_off_at = insns;
    }
    let mut stops = 0u64;
    let exit = loop {
        match vm.run(Some(insns + u64::from(power_off))) {
            VmExit::Interrupted => {
                stops += 1;
                match mix(seed ^ stops) % 4 {
                    0 => vm.inject(&InputEvent::WritePhys { gpa: stops, bytes: vec![stops as u8; 3] }),
                    1 => vm.inject(&InputEvent::WriteReg { vcpu: 0, reg: 3, value: u128::from(stops) }),
                    2 => recording.flush(vm.when()),
                    _ => {}
                }
            }
            other => break other,
        }
    };
    vm.arrive();
    recording.finish(vm.when(), ExitReason::from_exit(exit), vm.hash()).unwrap();
    Recorded { bytes: file.bytes(), hashes: vm.hashes, end: (vm.when(), vm.state) }
}

/// A replay of the fake machine.
pub struct Replayed {
    pub exit: VmExit,
    pub monitor: PlayMonitor,
    pub vm: Fake,
}

/// Replays with `slice` instructions between polls, and with a fault planted if wanted.
pub fn replay(
    trace: &Arc<Trace>,
    slice: u64,
    power_off: Option<u64>,
    fault: Option<(u64, Fault)>,
) -> Replayed {
    let player = Player::new(trace.clone(), Mailbox::new());
    let monitor = player.monitor();
    let output = Box::new(player.output(NullSink));
    let mut vm = Fake::new(trace.config(), Box::new(player), output);
    vm.slice = slice;
    vm.power_off_at = power_off.unwrap_or(u64::MAX);
    vm.fault = fault;
    // Far beyond any recording here: a replay ends by itself or the test fails.
    let exit = vm.run(Some(10_000_000));
    Replayed { exit, monitor, vm }
}
