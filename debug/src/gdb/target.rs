//! What the stub library asks of a machine, answered by the session. One thread a vCPU: thread id = index + 1.

use super::event_loop::Message;
use super::registers::{Arch, RegId, Registers};
use crate::breakpoints::Point;
use crate::inspect::Inspect;
use crate::monitor;
use crate::registers::{self, REGISTERS};
use crate::session::{Answer, Client, Resume, SessionError};
use crate::stop::{Event, StopReason};
use crate::travel;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{self as mt, MultiThreadBase, MultiThreadResume};
use gdbstub::target::ext::base::reverse_exec::{ReverseContOps, ReverseStepOps};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use retrovisor_core::Gva;
use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How long a command's answer waits for the machine to arrive where the command sends it.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for what is only looked at.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Error numbers gdb shows ("E0e").
mod errno {
    pub const ESRCH: u8 = 3;
    pub const EFAULT: u8 = 14;
    pub const EINVAL: u8 = 22;
    pub const EROFS: u8 = 30;
}

/// The machine as one gdb connection sees it.
pub struct Debuggee {
    pub client: Client,
    vcpus: usize,
    /// The vCPU the last request was about: `monitor` commands are too.
    pub selected: usize,
    action: Option<Resume>,
    /// Number of the run this connection resumed last.
    pub run: u64,
    /// Do not resume when asked to: the stub library is only being brought back to where it was.
    pub pretend: bool,
    /// The machine has a history to go back in.
    pub travels: bool,
    /// The vCPU the last stop was about, which is meant where the client leaves the thread open.
    pub stopped: usize,
    /// The client leaves open which thread a reverse step is about.
    pub any_thread: bool,
    /// Ways to the connection's queue.
    post: Sender<Message>,
    /// A command moved the machine, and gdb has not been told by a stop.
    moved: bool,
    /// The run whose stop the command's answer told.
    pub shown: Option<u64>,
    /// The branch the client knows it is on.
    pub branch: usize,
    pub software: BTreeSet<u64>,
    pub hardware: BTreeSet<u64>,
}

impl Debuggee {
    pub fn new(client: Client, post: Sender<Message>) -> Result<Self, SessionError> {
        let vcpus = client.vcpus()?;
        let travels = client.travels()?;
        Ok(Self {
            client,
            vcpus,
            selected: 0,
            action: None,
            run: 0,
            pretend: false,
            travels,
            stopped: 0,
            any_thread: true,
            post,
            moved: false,
            shown: None,
            branch: 1,
            software: BTreeSet::new(),
            hardware: BTreeSet::new(),
        })
    }

    /// The thread id of a vCPU.
    pub fn tid(vcpu: usize) -> Tid {
        Tid::new(vcpu + 1).unwrap_or(Tid::MIN)
    }

    /// Index of the vCPU a thread stands for.
    fn vcpu(&mut self, tid: Tid) -> TargetResult<usize, Self> {
        let vcpu = tid.get() - 1;
        if vcpu >= self.vcpus {
            return Err(TargetError::Errno(errno::ESRCH));
        }
        self.selected = vcpu;
        Ok(vcpu)
    }

    /// The vCPU to step; a thread that does not exist stands for the first.
    pub fn existing(&self, tid: Tid) -> usize {
        if tid.get() <= self.vcpus { tid.get() - 1 } else { 0 }
    }

    /// A command moves the machine, which gdb knows nothing of: waits a little for it to arrive, and tells where it is.
    fn moved(&mut self, run: u64) -> Result<String, SessionError> {
        (self.moved, self.run) = (true, run);
        let stop = match self.client.wait_for_stop(run, PATIENCE) {
            Ok(Some(stop)) => stop,
            Ok(None) => return Ok("still on the way: `continue` waits for it, Ctrl-C then stops it\n".into()),
            Err(SessionError::Exited(exit)) => return Ok(format!("{exit}\n")),
            Err(e) => return Err(e),
        };
        self.shown = Some(run);
        let (pc, insn) = self.client.inspect(move |m| travel::instruction(m, stop.vcpu))?;
        let why = match stop.reason {
            StopReason::Reached => String::new(),
            reason => format!("{reason}\n"),
        };
        let sync = "gdb sees it after `stepi`, which this time does nothing else\n";
        Ok(format!("{why}{}\n  {:#x}  {insn}\n{sync}", monitor::point(stop.when), pc.0))
    }

    /// Answers a resumption with the stop a command led to, if one did that gdb has not seen.
    fn answer_with_move(&mut self) -> Result<bool, SessionError> {
        if !std::mem::take(&mut self.moved) {
            return Ok(false);
        }
        // If the machine is still on its way, the stop will come by itself.
        if let Some(event @ Event::Stopped(_)) = self.client.state_within(AT_ONCE)? {
            // The connection is over if nobody listens.
            let _ = self.post.send(Message::Event(event));
        }
        Ok(true)
    }

    /// Resumes the machine.
    pub fn start(&mut self, how: Resume) -> Result<(), SessionError> {
        if self.pretend || self.answer_with_move()? {
            return Ok(());
        }
        match self.client.resume(how) {
            Ok(run) => {
                self.run = run;
                Ok(())
            }
            // The event that says so is in the connection's queue; it becomes the stop reply.
            Err(SessionError::Exited(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub fn insert(&mut self, point: Point) -> TargetResult<bool, Self> {
        self.client.insert(point).map_err(fault)?;
        Ok(true)
    }

    pub fn remove(&mut self, point: Point) -> TargetResult<bool, Self> {
        self.client.remove(point).map_err(fault)
    }

    /// Values of some registers of a vCPU, in gdb's byte order.
    pub fn values(&self, vcpu: usize, ids: Vec<RegId>) -> Result<Vec<Vec<u8>>, SessionError> {
        self.client.inspect(move |m| ids.iter().map(|id| value(m, vcpu, *id)).collect())
    }

    fn write(&mut self, vcpu: usize, id: RegId, bytes: &[u8]) -> TargetResult<(), Self> {
        let row = id.register().ok_or(TargetError::Errno(errno::EINVAL))?;
        let (Some(num), true) = (row.num, bytes.len() == row.bytes()) else {
            return Err(TargetError::Errno(errno::EINVAL));
        };
        let mut wide = [0; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        let value = registers::stored(row.source, u128::from_le_bytes(wide));
        self.client.write_register(vcpu, num, value).map_err(fault)
    }
}

/// One register's bytes.
fn value(m: &Inspect<'_>, vcpu: usize, id: RegId) -> Vec<u8> {
    match (m.vcpu(vcpu), id.register()) {
        (Some(cpu), Some(row)) => {
            let value = registers::read(cpu, m.cr8(vcpu), row.source);
            value.to_le_bytes()[..row.bytes()].to_vec()
        }
        _ => Vec::new(),
    }
}

/// What gdb is told about a refused command; a session that is gone ends the connection.
fn fault(e: SessionError) -> TargetError<SessionError> {
    match e {
        SessionError::Unmapped(_) | SessionError::NotRam(_) => TargetError::Errno(errno::EFAULT),
        SessionError::NoVcpu(_) => TargetError::Errno(errno::ESRCH),
        SessionError::ReadOnly => TargetError::Errno(errno::EROFS),
        SessionError::Exited(_) | SessionError::Timeline(_) => TargetError::NonFatal,
        SessionError::Gone | SessionError::Thread(_) => TargetError::Fatal(e),
    }
}

impl Target for Debuggee {
    type Arch = Arch;
    type Error = SessionError;

    fn base_ops(&mut self) -> BaseOps<'_, Arch, SessionError> {
        BaseOps::MultiThread(self)
    }
    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
    fn use_fork_stop_reason(&self) -> bool {
        false
    }
    fn use_vfork_stop_reason(&self) -> bool {
        false
    }
    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }
}

impl MultiThreadBase for Debuggee {
    fn read_registers(&mut self, regs: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        let all = (0..REGISTERS.len()).map(RegId).collect();
        regs.bytes = self.values(vcpu, all).map_err(fault)?.concat();
        Ok(())
    }

    fn write_registers(&mut self, regs: &Registers, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        let mut old = Registers::default();
        self.read_registers(&mut old, tid)?;
        let mut at = 0;
        for (i, row) in REGISTERS.iter().enumerate() {
            let range = at..at + row.bytes();
            at = range.end;
            match (old.bytes.get(range.clone()), regs.bytes.get(range)) {
                // Only what changed: each write is an input of its own, and read-only registers stay out of it.
                (Some(old), Some(new)) if old != new => self.write(vcpu, RegId(i), new)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(tid)?;
        let bytes = self.client.read_virtual(vcpu, Gva(start), data.len()).map_err(fault)?;
        if bytes.is_empty() && !data.is_empty() {
            return Err(TargetError::Errno(errno::EFAULT));
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        self.client.write_virtual(vcpu, Gva(start), data.to_vec()).map_err(fault)
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), SessionError> {
        (0..self.vcpus).map(Self::tid).for_each(each);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<mt::MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Debuggee {
    fn read_register(&mut self, tid: Tid, id: RegId, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(tid)?;
        let bytes = self.values(vcpu, vec![id]).map_err(fault)?.concat();
        let place = buf.get_mut(..bytes.len()).ok_or(TargetError::Errno(errno::EINVAL))?;
        place.copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, id: RegId, val: &[u8]) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        self.write(vcpu, id, val)
    }
}

impl ThreadExtraInfo for Debuggee {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, SessionError> {
        let vcpu = tid.get() - 1;
        let text = self.client.inspect(move |m| match m.vcpu(vcpu) {
            Some(cpu) => format!("vCPU {vcpu}, {}, {}", monitor::activity(cpu), monitor::mode_name(cpu)),
            None => "no such vCPU".into(),
        })?;
        let n = text.len().min(buf.len());
        buf[..n].copy_from_slice(&text.as_bytes()[..n]);
        Ok(n)
    }
}

impl MultiThreadResume for Debuggee {
    fn resume(&mut self) -> Result<(), SessionError> {
        let how = self.action.take().unwrap_or(Resume::Continue { until: None });
        self.start(how)
    }

    fn clear_resume_actions(&mut self) -> Result<(), SessionError> {
        self.action = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), SessionError> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<mt::MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
    fn support_range_step(&mut self) -> Option<mt::MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }
    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        if self.travels { Some(self) } else { None }
    }
    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        if self.travels { Some(self) } else { None }
    }
    fn support_scheduler_locking(&mut self) -> Option<mt::MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl mt::MultiThreadSingleStep for Debuggee {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), SessionError> {
        self.action = Some(Resume::Step { vcpu: self.existing(tid) });
        Ok(())
    }
}

impl mt::MultiThreadRangeStepping for Debuggee {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), SessionError> {
        self.action = Some(Resume::StepRange { vcpu: self.existing(tid), start, end });
        Ok(())
    }
}

impl mt::MultiThreadSchedulerLocking for Debuggee {
    /// vCPUs take their turns whatever gdb asks for: the schedule is part of the deterministic machine.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), SessionError> {
        Ok(())
    }
}

impl MonitorCmd for Debuggee {
    fn handle_monitor_cmd(&mut self, cmd: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), SessionError> {
        let line = String::from_utf8_lossy(cmd).into_owned();
        let vcpu = self.selected;
        let text = match self.client.monitor(vcpu, line)? {
            Ok(Answer { text, run: None }) => text,
            Ok(Answer { text, run: Some(run) }) => text + &self.moved(run)?,
            Err(why) => format!("{why}\n"),
        };
        out.write_raw(text.as_bytes());
        Ok(())
    }
}
