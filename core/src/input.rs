//! The one door through which everything nondeterministic enters the machine.
//!
//! `Live` (host), `Recorder<Live>`, `Player` and `Diverted` implement [`InputPort`] in other crates; the engine has
//! one call site for each method.

use crate::addr::{GuestTime, Icount};

/// A point of a run: icount orders everything; guest time orders what happens while no instruction retires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct When {
    pub icount: Icount,
    pub time: GuestTime,
}

/// An asynchronous input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InputEvent {
    /// Bytes arriving at a serial port (0 = COM1).
    Serial { port: u8, bytes: Vec<u8> },
    /// A PS/2 set-1 scan-code sequence from the keyboard.
    Key { bytes: Vec<u8> },
    /// The power button was pressed.
    PowerButton,
    /// An external reset (the machine restarts from its reset state).
    Reset,
    /// A non-maskable interrupt sent by the user.
    Nmi,
    /// `--clock host` only: guest time moved to `time` and a timer is due.
    Tick { time: GuestTime },
    /// A debugger wrote guest-physical memory.
    WritePhys { gpa: u64, bytes: Vec<u8> },
    /// A debugger wrote a register; `reg` is a number of [`crate::vcpu::regs`].
    WriteReg { vcpu: u8, reg: u16, value: u128 },
}

/// A synchronous question whose answer is nondeterministic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Query {
    /// Nanoseconds of host time since the machine was started.
    HostTime,
    /// Wall-clock time at power-on, seconds since 1970-01-01 UTC.
    BootWallTime,
    /// 64 random bits.
    Random,
}

/// What [`InputPort::poll`] has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Nothing now.
    None,
    /// Apply this event at the current point, then poll again.
    Event(InputEvent),
    /// Somebody wants the VM thread: leave `Vm::run` with `VmExit::Interrupted`. Not an input; changes no state.
    Interrupt,
    /// The trace being replayed ends at this point: leave with `VmExit::InputEnded`.
    End,
}

/// How an idle wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// The deadline was reached: guest time becomes the deadline.
    Deadline,
    /// An input is ready; guest time becomes `.0` (not after the deadline), then `poll` returns the input.
    Input(GuestTime),
    /// The wait was interrupted; guest time does not move.
    Interrupted,
    /// The trace ends during this wait.
    End,
}

/// The door. Implementations must not depend on how often they are called between two points.
///
/// What the engine owes a port at each boundary, so that a replay is exact however it is sliced: on first arrival at a
/// hash point `check`; then timers that are due expire; then one `poll`; after an event, timers come first again, then
/// the next `poll`; when `poll` has nothing, a delivery, an idle wait or instructions. When timers expire must not depend
/// on where blocks end: under the virtual clock a block ends at the deadline, and after an instruction that armed a timer;
/// under the host clock timers expire only at a tick and at the end of an idle wait.
pub trait InputPort: Send {
    /// Asks for an asynchronous event at `now`. Called at slice boundaries, after an idle wait, and at every
    /// point [`InputPort::next_poll`] asked for; at most once more after each event it returns for the same point.
    fn poll(&mut self, now: When) -> Poll;

    /// The icount at which the engine must call `poll` exactly (a replay's next event); `None`: at its leisure. Ask
    /// again after every other call. An icount that is not ahead means: poll before the next instruction.
    fn next_poll(&self) -> Option<Icount>;

    /// Answers a synchronous query.
    fn answer(&mut self, now: When, query: Query) -> u64;

    /// All vCPUs are halted. Waits until `deadline` (guest time; `None`: no timer is armed) or an input.
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle;

    /// `--clock host`: the next guest time at which a device has something to do, told before each slice. A live port
    /// returns [`InputEvent::Tick`] from `poll` once host time has reached it; other ports need not care.
    fn set_deadline(&mut self, _deadline: Option<GuestTime>) {}

    /// The machine goes on at `now` after its owner let it stand still: host time that has passed meanwhile is no guest time.
    fn resume(&mut self, _now: When) {}

    /// The VM's owner (a debugger) applied `event` at `now` by itself: a recorder logs it, so that a replay's `poll`
    /// returns it at the same point.
    fn inject(&mut self, _now: When, _event: &InputEvent) {}

    /// The state hash at a hash point. A recorder logs it; a player compares and answers false on a mismatch, which
    /// makes the engine leave with `VmExit::Diverged`.
    fn check(&mut self, _now: When, _hash: crate::hash::StateHash) -> bool {
        true
    }
}

/// A port with no inputs at all: idle time is skipped, queries answer zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInput;

impl InputPort for NoInput {
    fn poll(&mut self, _now: When) -> Poll {
        Poll::None
    }
    fn next_poll(&self) -> Option<Icount> {
        None
    }
    fn answer(&mut self, _now: When, _query: Query) -> u64 {
        0
    }
    fn idle(&mut self, _now: When, deadline: Option<GuestTime>) -> Idle {
        if deadline.is_some() { Idle::Deadline } else { Idle::End }
    }
}

impl InputPort for Box<dyn InputPort> {
    fn poll(&mut self, now: When) -> Poll {
        (**self).poll(now)
    }
    fn next_poll(&self) -> Option<Icount> {
        (**self).next_poll()
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        (**self).answer(now, query)
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        (**self).idle(now, deadline)
    }
    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        (**self).set_deadline(deadline)
    }
    fn inject(&mut self, now: When, event: &InputEvent) {
        (**self).inject(now, event)
    }
    fn check(&mut self, now: When, hash: crate::hash::StateHash) -> bool {
        (**self).check(now, hash)
    }
}
