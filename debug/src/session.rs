//! The one door for every client (gdb, the terminal UI, tests). A VM thread owns the machine; clients send it
//! commands through a [`SessionHandle`] and receive [`Event`]s. Several clients may be attached at once.
//!
//! A command is served at an instruction boundary: while the guest runs, the sender interrupts `Vm::run`, the VM
//! thread serves what is queued and runs on. So a command is never far, and the guest never sees one.

mod travel;
mod worker;

use crate::breakpoints::{ClientId, Point};
use crate::inspect::Inspect;
use crate::stop::{Event, Exit, Stop};
use crate::travel::{LastWrite, Sought, TimelineView};
use retrovisor_core::input::{InputEvent, When};
use retrovisor_core::{Gpa, GuestTime, Gva, Icount};
use retrovisor_replay::{Machine, TimelineError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;
use worker::{Job, Worker};

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SessionError {
    #[error("the session has ended")]
    Gone,
    #[error("the guest's run is over: {0}")]
    Exited(Exit),
    #[error("there is no vCPU {0}")]
    NoVcpu(usize),
    #[error("linear address {0} is not mapped to RAM")]
    Unmapped(Gva),
    #[error("physical address {0} is not RAM")]
    NotRam(Gpa),
    #[error("this is a replay: its memory and registers cannot be changed")]
    ReadOnly,
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    #[error("the VM thread could not be started: {0}")]
    Thread(String),
}

/// What a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// While one is attached, fatal conditions (triple fault, dead machine, end of a trace) stop instead of ending
    /// the run.
    Debugger,
    /// Only looks and listens.
    Observer,
}

/// How to resume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// Until something stops the guest; with an icount, at the latest there (exactly).
    Continue { until: Option<Icount> },
    /// One instruction (or REP iteration, or delivery) of this vCPU.
    Step { vcpu: usize },
    /// Like `Step`, repeated while RIP of this vCPU stays in `[start, end)`.
    StepRange { vcpu: usize, start: u64, end: u64 },
    /// Back to the last point at which something would have stopped the guest.
    ReverseContinue,
    /// Back by one instruction (or REP iteration, or delivery) of this vCPU.
    ReverseStep { vcpu: usize },
    /// To the newest point of a branch, or (`None`) onto a new one that begins here.
    Branch { id: Option<usize> },
    /// To where the guest first arrived at this icount, back or forward; at most to the newest point.
    Seek { to: Icount },
    /// To where guest time first reached this, back or forward.
    SeekTime { to: GuestTime },
    /// To the last or next point at which this happens, and nothing else. Backwards to before it; forwards, where it is
    /// an [`Occurrence`](retrovisor_core::engine::hooks::Occurrence), to after it.
    Search { what: Sought, back: bool },
}

/// How a session starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Wait before the first instruction.
    pub freeze: bool,
    /// Refuse writes to memory and registers (replays).
    pub read_only: bool,
}

/// What a text command has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub text: String,
    /// It moves the machine: the number of that run.
    pub run: Option<u64>,
}

/// Receives events on the VM thread, so it must be quick and must not call back into the session; answers false to
/// be dropped.
pub type Sink = Box<dyn FnMut(&Event) -> bool + Send>;

/// The owner of the VM thread.
pub struct Session {
    handle: SessionHandle,
    thread: JoinHandle<Machine>,
}

impl Session {
    /// Moves `vm` to its own thread. `interrupt` makes the machine's input port leave `Vm::run` soon
    /// (`Poll::Interrupt`, `Idle::Interrupted`); it may be called from any thread, also when the guest is not
    /// running, and must not be lost then.
    pub fn spawn(
        vm: impl Into<Machine>,
        interrupt: impl Fn() + Send + Sync + 'static,
        options: Options,
    ) -> Result<Self, SessionError> {
        let (jobs, queue) = mpsc::channel();
        let vm = vm.into();
        let cancel = vm.timeline().map(|t| Arc::clone(t.cancel())).unwrap_or_default();
        let worker = Worker::new(vm, queue, options);
        let thread = std::thread::Builder::new()
            .name("vm".into())
            .spawn(move || worker.run())
            .map_err(|e| SessionError::Thread(e.to_string()))?;
        Ok(Self { handle: SessionHandle { jobs, interrupt: Arc::new(interrupt), cancel }, thread })
    }

    /// A handle for a client.
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// Waits until the guest's run is over. Stops are waited through: somebody else resumes.
    pub fn wait(&self) -> Exit {
        let (tx, rx) = mpsc::channel();
        let sink = Box::new(
            move |e: &Event| if let Event::Exited(exit) = e { tx.send(*exit).is_ok() } else { true },
        );
        match self.handle.attach(Role::Observer, sink) {
            Ok(_client) => rx.recv().unwrap_or(Exit::Bug),
            Err(_) => Exit::Bug,
        }
    }

    /// Ends the VM thread and gives the machine back. `Gone` if the thread died of an internal bug.
    pub fn join(self) -> Result<Machine, SessionError> {
        // An error only means that the thread has ended already.
        let _ = self.handle.send(Box::new(|w| w.quit()));
        self.thread.join().map_err(|_| SessionError::Gone)
    }
}

/// Sends commands to the VM thread. Every method waits for its reply.
#[derive(Clone)]
pub struct SessionHandle {
    jobs: mpsc::Sender<Job>,
    interrupt: Arc<dyn Fn() + Send + Sync>,
    /// Ends a way through the history early.
    cancel: Arc<AtomicBool>,
}

impl SessionHandle {
    fn send(&self, job: Job) -> Result<(), SessionError> {
        self.jobs.send(job).map_err(|_| SessionError::Gone)?;
        (self.interrupt)();
        Ok(())
    }

    fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, SessionError> {
        let (tx, rx) = mpsc::channel();
        self.send(Box::new(move |w| {
            // A caller that went away does not want its answer.
            let _ = tx.send(f(w));
        }))?;
        rx.recv().map_err(|_| SessionError::Gone)
    }

    /// Attaches a client. Its sink is told the present state at once, then every change.
    pub fn attach(&self, role: Role, sink: Sink) -> Result<Client, SessionError> {
        let id = self.call(move |w| w.attach(role, sink))?;
        Ok(Client { handle: self.clone(), id })
    }

    /// Looks at the machine at the next boundary. Never disturbs the guest.
    pub fn inspect<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Inspect<'_>) -> R + Send + 'static,
    ) -> Result<R, SessionError> {
        self.call(move |w| f(&mut w.inspect()))
    }

    /// The current point.
    pub fn when(&self) -> Result<When, SessionError> {
        self.inspect(|m| m.when())
    }

    /// The present state, as the event that would announce it.
    pub fn state(&self) -> Result<Event, SessionError> {
        self.call(|w| w.state())
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> Result<usize, SessionError> {
        self.inspect(|m| m.vm().vcpus.len())
    }

    /// Resumes; answers the number of the run (see [`Event::Running`]). If the guest runs already, that run goes on.
    pub fn resume(&self, how: Resume) -> Result<u64, SessionError> {
        self.call(move |w| w.resume(how))?
    }

    /// Runs until something stops the guest.
    pub fn cont(&self) -> Result<u64, SessionError> {
        self.resume(Resume::Continue { until: None })
    }

    /// Stops a running guest at the next boundary; the stop is broadcast before this returns. A search in the history ends
    /// where it began.
    pub fn pause(&self) -> Result<(), SessionError> {
        self.cancel.store(true, Ordering::Release);
        self.call(|w| w.pause())
    }

    /// The history and the machine's place in it; `None` if none is kept.
    pub fn timeline(&self) -> Result<Option<TimelineView>, SessionError> {
        self.call(|w| w.timeline())
    }

    /// Names a point: this one, or `at`. A name names one point.
    pub fn mark(&self, name: String, at: Option<Icount>) -> Result<(), SessionError> {
        self.call(move |w| {
            let at = at.unwrap_or(w.inspect().icount());
            w.marks().insert(name, at);
        })
    }

    /// Forgets a name; false if there was none.
    pub fn unmark(&self, name: String) -> Result<bool, SessionError> {
        self.call(move |w| w.marks().remove(&name).is_some())
    }

    /// Who wrote last, before the machine's point, to any of `len` bytes of physical memory. The machine stays where it is.
    pub fn last_write(&self, gpa: Gpa, len: u64) -> Result<Option<LastWrite>, SessionError> {
        self.call(move |w| w.last_write(gpa, len))?
    }

    /// Looks back or forward for something; answers the number of the run, as [`SessionHandle::resume`].
    pub fn search(&self, what: Sought, back: bool) -> Result<u64, SessionError> {
        self.resume(Resume::Search { what, back })
    }

    /// The present state, as [`SessionHandle::state`], if the VM thread tells it in this time.
    pub fn state_within(&self, time: Duration) -> Result<Option<Event>, SessionError> {
        let (tx, rx) = mpsc::channel();
        self.send(Box::new(move |w| {
            // As in `call`.
            let _ = tx.send(w.state());
        }))?;
        match rx.recv_timeout(time) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(SessionError::Gone),
        }
    }

    /// Waits until a run that was begun has ended, but not longer than `time`: its stop, or that of a later run.
    pub fn wait_for_stop(&self, run: u64, time: Duration) -> Result<Option<Stop>, SessionError> {
        let began = Instant::now();
        loop {
            match self.state_within(time.saturating_sub(began.elapsed()))? {
                Some(Event::Stopped(stop)) if stop.run >= run => return Ok(Some(stop)),
                Some(Event::Exited(exit)) => return Err(SessionError::Exited(exit)),
                _ if began.elapsed() >= time => return Ok(None),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Does the machine have a history it can be moved in?
    pub fn travels(&self) -> Result<bool, SessionError> {
        self.call(|w| w.travels())
    }

    /// Moves the machine to where it first arrived at `to`; answers the number of the run, as [`SessionHandle::resume`].
    pub fn seek(&self, to: Icount) -> Result<u64, SessionError> {
        self.resume(Resume::Seek { to })
    }

    /// Ends the run.
    pub fn kill(&self) -> Result<(), SessionError> {
        self.cancel.store(true, Ordering::Release);
        self.call(|w| w.kill())
    }

    /// Reads memory at a linear address; shorter than `len` if a page is unmapped.
    pub fn read_virtual(&self, vcpu: usize, gva: Gva, len: usize) -> Result<Vec<u8>, SessionError> {
        self.inspect(move |m| {
            let mut buf = vec![0; len];
            let got = m.read_virtual(vcpu, gva, &mut buf);
            buf.truncate(got);
            buf
        })
    }

    /// Reads physical memory; shorter than `len` if part is neither RAM nor ROM.
    pub fn read_physical(&self, gpa: Gpa, len: usize) -> Result<Vec<u8>, SessionError> {
        self.inspect(move |m| {
            let mut buf = vec![0; len];
            let got = m.read_physical(gpa, &mut buf);
            buf.truncate(got);
            buf
        })
    }

    /// Writes memory at a linear address: all of it or, if a page is not mapped to RAM, nothing. A logged input.
    pub fn write_virtual(&self, vcpu: usize, gva: Gva, bytes: Vec<u8>) -> Result<(), SessionError> {
        self.call(move |w| w.write_virtual(vcpu, gva, &bytes))?
    }

    /// Writes physical memory: all of it or nothing. A logged input.
    pub fn write_physical(&self, gpa: Gpa, bytes: Vec<u8>) -> Result<(), SessionError> {
        self.call(move |w| w.write_physical(gpa, &bytes))?
    }

    /// Writes a register by its number in `vcpu::regs::num`. A logged input.
    pub fn write_register(&self, vcpu: usize, reg: u16, value: u128) -> Result<(), SessionError> {
        self.call(move |w| w.write_register(vcpu, reg, value))?
    }

    /// Applies an input at the current boundary (NMI, reset, power button). A logged input.
    pub fn inject(&self, event: InputEvent) -> Result<(), SessionError> {
        self.call(move |w| w.inject(&event))?
    }
}

/// An attached client. Dropping it detaches: its breakpoints go, the guest stays as it is.
pub struct Client {
    handle: SessionHandle,
    id: ClientId,
}

impl Client {
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Sets a breakpoint or watchpoint for this client. May be called repeatedly; each needs its own removal.
    pub fn insert(&self, point: Point) -> Result<(), SessionError> {
        let id = self.id;
        self.handle.call(move |w| w.insert(id, point))
    }

    /// Removes one that this client set; false if it has not.
    pub fn remove(&self, point: Point) -> Result<bool, SessionError> {
        let id = self.id;
        self.handle.call(move |w| w.remove(id, point))
    }

    /// Bit n: stop before exception n is delivered, while this client is attached.
    pub fn stop_on_exceptions(&self, mask: u32) -> Result<(), SessionError> {
        let id = self.id;
        self.handle.call(move |w| w.stop_on_exceptions(id, mask))
    }

    /// Runs a text command (see [`crate::monitor`]) about a vCPU: its answer, or what is wrong with it.
    pub fn monitor(&self, vcpu: usize, line: String) -> Result<Result<Answer, String>, SessionError> {
        let id = self.id;
        self.handle.call(move |w| w.monitor(id, vcpu, &line))
    }

    /// Detaches and lets the guest run on if no other debugger is attached.
    pub fn detach_and_continue(self) {
        let id = self.id;
        // An error only means that the session is over; there is nothing left to detach from.
        let _ = self.handle.call(move |w| w.detach_and_continue(id));
    }
}

impl std::ops::Deref for Client {
    type Target = SessionHandle;
    fn deref(&self) -> &SessionHandle {
        &self.handle
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let id = self.id;
        // As above: no session, no client.
        let _ = self.handle.call(move |w| w.detach(id));
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod travel_tests;
