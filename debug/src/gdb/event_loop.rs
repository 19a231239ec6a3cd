//! One gdb connection. Bytes from the client and events from the session arrive in one queue, so nothing is polled.

use super::packet::{Frame, Framer, bounded, console, encode};
use super::registers::RegId;
use super::reverse::continue_thread;
use super::target::Debuggee;
use crate::disasm;
use crate::registers::REGISTERS;
use crate::session::{Role, SessionError, SessionHandle};
use crate::stop::{Event, Exit, Stop, StopReason};
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubBuilder, MultiThreadStopReason};
use gdbstub::target::ext::base::reverse_exec::ReplayLogPosition::{Begin, End};
use gdbstub::target::ext::breakpoints::WatchKind as GdbWatch;
use retrovisor_core::engine::hooks::{WatchAddr, WatchHit, WatchKind};
use retrovisor_core::exception::vector;
use retrovisor_replay::BranchInfo;
use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender};

/// What a connection waits for.
pub enum Message {
    Bytes(Vec<u8>),
    /// The client is gone.
    Closed,
    Event(Event),
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The client left; the guest runs on.
    Detached,
    /// The client ended the run.
    Killed,
    /// The run was over.
    Exited(Exit),
    /// Nobody ever spoke.
    Silent,
}

type Machine = GdbStubStateMachine<'static, Debuggee, Outbox>;
type Reason = MultiThreadStopReason<u64>;

/// What the stub library writes, collected until it is sent.
#[derive(Clone, Default)]
struct Outbox(Rc<RefCell<Vec<u8>>>);

impl Connection for Outbox {
    type Error = Infallible;
    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.borrow_mut().push(byte);
        Ok(())
    }
    fn write_all(&mut self, buf: &[u8]) -> Result<(), Infallible> {
        self.0.borrow_mut().extend_from_slice(buf);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Why a connection cannot go on.
enum Broken {
    Session(SessionError),
    /// The client does not take what is sent, or the stub library does not start.
    Wire,
}

impl From<SessionError> for Broken {
    fn from(e: SessionError) -> Self {
        Broken::Session(e)
    }
}
impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Broken::Wire
    }
}

/// Serves one client until it leaves. `out` is the way to it; `queue` brings what it sends, and `post` puts session
/// events there. The guest is stopped when the client first speaks, not when it connects.
pub fn serve(
    session: &SessionHandle,
    out: impl Write,
    queue: &Receiver<Message>,
    post: Sender<Message>,
) -> Result<Ended, SessionError> {
    let first = match queue.recv() {
        Ok(Message::Bytes(bytes)) => bytes,
        _ => return Ok(Ended::Silent),
    };
    let moves = post.clone();
    let sink = Box::new(move |event: &Event| post.send(Message::Event(*event)).is_ok());
    let client = session.attach(Role::Debugger, sink)?;
    client.pause()?;
    let mut conn = Conn {
        out,
        outbox: Outbox::default(),
        target: Debuggee::new(client, moves)?,
        machine: None,
        framer: Framer::default(),
        ack: true,
        last: Vec::new(),
        features: None,
        thread: None,
        exited: None,
    };
    let ended = match conn.run(first, queue) {
        Ok(ended) => ended,
        Err(Broken::Wire) => Ended::Detached,
        Err(Broken::Session(e)) => return Err(e),
    };
    let client = conn.target.client;
    match ended {
        Ended::Killed => client.kill()?,
        Ended::Detached => client.detach_and_continue(),
        Ended::Exited(_) | Ended::Silent => {}
    }
    Ok(ended)
}

struct Conn<W> {
    out: W,
    outbox: Outbox,
    target: Debuggee,
    /// `None` when the stub library gave up on a packet, until it is started again.
    machine: Option<Machine>,
    framer: Framer,
    /// Packets are acknowledged (until the client switches that off).
    ack: bool,
    /// What was sent last, in case the client asks for it again.
    last: Vec<u8>,
    /// The packets a restarted stub library has to see again: feature negotiation, selected thread.
    features: Option<Vec<u8>>,
    thread: Option<Vec<u8>>,
    exited: Option<Exit>,
}

impl<W: Write> Conn<W> {
    fn run(&mut self, first: Vec<u8>, queue: &Receiver<Message>) -> Result<Ended, Broken> {
        self.start(false)?;
        let mut message = Message::Bytes(first);
        loop {
            let ended = match message {
                Message::Bytes(bytes) => self.bytes(&bytes)?,
                Message::Closed => Some(self.closed()?),
                Message::Event(event) => self.event(event)?,
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
            message = queue.recv().unwrap_or(Message::Closed);
        }
    }

    fn running(&self) -> bool {
        matches!(self.machine, Some(Machine::Running(_)))
    }

    // --- what the client sends ---

    fn bytes(&mut self, bytes: &[u8]) -> Result<Option<Ended>, Broken> {
        for byte in bytes {
            let Some(frame) = self.framer.push(*byte) else { continue };
            match frame {
                Frame::Packet(body) => {
                    if let Some(ended) = self.packet(body)? {
                        return Ok(Some(ended));
                    }
                }
                Frame::Bad if self.ack => self.out.write_all(b"-")?,
                Frame::Nack if self.ack => self.out.write_all(&self.last)?,
                Frame::Interrupt if self.running() => {
                    self.feed(&[3])?;
                }
                Frame::Bad | Frame::Nack | Frame::Interrupt | Frame::Ack => {}
            }
        }
        Ok(None)
    }

    fn packet(&mut self, body: Vec<u8>) -> Result<Option<Ended>, Broken> {
        if self.ack {
            self.out.write_all(b"+")?;
        }
        if body.starts_with(b"vKill;") {
            self.send(encode(b"OK"))?;
            return Ok(Some(Ended::Killed));
        }
        if body == b"?" {
            return self.present_state();
        }
        let mut body = bounded(body);
        if let Some(any) = continue_thread(&body) {
            self.target.any_thread = any;
            if any {
                // The library takes no reverse step of all threads.
                body = b"Hc0".to_vec();
            }
        }
        let running = self.running();
        if !self.feed(&encode(&body))? {
            // The library cannot make sense of the packet and is in no state to go on.
            self.start(running)?;
            self.send(encode(b"E16"))?;
            return Ok(None);
        }
        self.flush()?;
        match &body[..] {
            b"QStartNoAckMode" => self.ack = false,
            [b'q', b'S', b'u', b'p', ..] => self.features = Some(body),
            [b'H', b'g', ..] => self.thread = Some(body),
            _ => {}
        }
        match (&self.machine, self.exited) {
            (Some(Machine::Disconnected(m)), _) => Ok(Some(match m.get_reason() {
                DisconnectReason::Kill => Ended::Killed,
                _ => Ended::Detached,
            })),
            (Some(Machine::Running(_)), Some(exit)) => self.report_exit(exit).map(Some),
            _ => Ok(None),
        }
    }

    /// Answers `?`: why the guest is stopped, on behalf of which thread.
    fn present_state(&mut self) -> Result<Option<Ended>, Broken> {
        let vcpu = match self.target.client.state()? {
            Event::Exited(exit) => {
                self.send(encode(format!("W{:02x}", exit.status()).as_bytes()))?;
                return Ok(Some(Ended::Exited(exit)));
            }
            Event::Stopped(stop) => stop.vcpu,
            Event::Running(_) => 0,
        };
        self.send(encode(format!("T05thread:{:x};", Debuggee::tid(vcpu)).as_bytes()))?;
        Ok(None)
    }

    fn closed(&mut self) -> Result<Ended, Broken> {
        // The server closes our side when the run is over; the client may still be waiting to hear of it.
        match self.target.client.state()? {
            Event::Exited(exit) if self.running() => self.report_exit(exit),
            Event::Exited(exit) => Ok(Ended::Exited(exit)),
            _ => Ok(Ended::Detached),
        }
    }

    // --- the stub library ---

    /// Starts the library; with `running`, in the state where the client waits for the guest to stop.
    fn start(&mut self, running: bool) -> Result<(), Broken> {
        let size = super::packet::MAX_BODY + 64;
        let stub = GdbStubBuilder::new(self.outbox.clone()).packet_buffer_size(size).build();
        let stub: GdbStub<'static, Debuggee, Outbox> = stub.map_err(|_| Broken::Wire)?;
        self.machine = Some(stub.run_state_machine(&mut self.target).map_err(|_| Broken::Wire)?);
        let run = running.then(|| b"vCont;c".to_vec());
        self.target.pretend = true;
        for packet in [self.features.clone(), self.thread.clone(), run].into_iter().flatten() {
            // These were understood before.
            self.feed(&encode(&packet))?;
        }
        self.target.pretend = false;
        self.outbox.0.borrow_mut().clear();
        Ok(())
    }

    /// Gives bytes to the library. False if it gave up on them.
    fn feed(&mut self, bytes: &[u8]) -> Result<bool, Broken> {
        for byte in bytes {
            let next = match self.machine.take() {
                Some(Machine::Idle(m)) => m.incoming_data(&mut self.target, *byte),
                Some(Machine::Running(m)) => m.incoming_data(&mut self.target, *byte),
                other => {
                    self.machine = other;
                    return Ok(self.machine.is_some());
                }
            };
            match next {
                Ok(Machine::CtrlCInterrupt(m)) => {
                    self.target.client.pause()?;
                    // The stop that follows arrives as an event.
                    self.machine = m.interrupt_handled(&mut self.target, None::<Reason>).ok();
                }
                Ok(machine) => self.machine = Some(machine),
                Err(e) if e.is_target_error() => {
                    return Err(Broken::Session(e.into_target_error().unwrap_or(SessionError::Gone)));
                }
                Err(_) => {
                    self.outbox.0.borrow_mut().clear();
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<(), Broken> {
        self.out.write_all(&bytes)?;
        self.out.flush()?;
        self.last = bytes;
        Ok(())
    }

    /// Sends what the library wrote; acknowledgements are ours, so its own are left out.
    fn flush(&mut self) -> Result<(), Broken> {
        let mut bytes = std::mem::take(&mut *self.outbox.0.borrow_mut());
        let acks = bytes.iter().take_while(|b| **b == b'+').count();
        bytes.drain(..acks);
        if bytes.is_empty() { Ok(()) } else { self.send(bytes) }
    }

    // --- what the session says ---

    fn event(&mut self, event: Event) -> Result<Option<Ended>, Broken> {
        match event {
            Event::Stopped(stop) if self.running() && stop.run >= self.target.run => self.report(&stop)?,
            Event::Exited(exit) if self.running() => return self.report_exit(exit).map(Some),
            Event::Exited(exit) => {
                self.exited = Some(exit);
                return Ok(Some(Ended::Exited(exit)));
            }
            Event::Stopped(_) | Event::Running(_) => {}
        }
        Ok(None)
    }

    fn report(&mut self, stop: &Stop) -> Result<(), Broken> {
        if let Some(text) = self.other_branch(stop)? {
            self.out.write_all(&console(&text))?;
        }
        if let Some(text) = self.announcement(stop)? {
            self.out.write_all(&console(&text))?;
        }
        let reason = self.reason(stop);
        let sent = |name: &str| REGISTERS.iter().position(|r| r.name == name).map(RegId);
        let ids: Vec<RegId> = ["rip", "rsp", "rbp", "eflags"].into_iter().filter_map(sent).collect();
        let values = self.target.values(stop.vcpu, ids.clone())?;
        let mut regs = ids.into_iter().zip(values.iter().map(Vec::as_slice));
        (self.target.selected, self.target.stopped) = (stop.vcpu, stop.vcpu);
        if let Some(Machine::Running(m)) = self.machine.take() {
            self.machine = m.report_stop_with_regs(&mut self.target, reason, &mut regs).ok();
        }
        self.flush()
    }

    fn report_exit(&mut self, exit: Exit) -> Result<Ended, Broken> {
        self.out.write_all(&console(&format!("retrovisor: {exit}\n")))?;
        let reply = match exit {
            Exit::Killed => format!("X{:02x}", Signal::SIGKILL.0),
            exit => format!("W{:02x}", exit.status()),
        };
        self.send(encode(reply.as_bytes()))?;
        Ok(Ended::Exited(exit))
    }

    /// What to print if the client has changed the past since the last stop.
    fn other_branch(&mut self, stop: &Stop) -> Result<Option<String>, SessionError> {
        let here = self.target.client.timeline()?.and_then(|t| t.branches.into_iter().find(|b| b.current));
        let Some(BranchInfo { id, parent: Some((parent, at)), .. }) = here else { return Ok(None) };
        if std::mem::replace(&mut self.target.branch, id) == id
            || matches!(stop.reason, StopReason::Branch(_))
        {
            return Ok(None);
        }
        Ok(Some(format!(
            "retrovisor: the past was changed at icount {at}: this is branch {id}; `monitor branch {parent}` goes back\n"
        )))
    }

    /// What to print about a stop, where gdb's own words for it would not tell.
    fn announcement(&self, stop: &Stop) -> Result<Option<String>, SessionError> {
        let own_words = match stop.reason {
            StopReason::Watchpoint(hit) => matches!(hit.watch.addr, WatchAddr::Virtual(_)),
            StopReason::Frozen | StopReason::Step | StopReason::Breakpoint(_) | StopReason::Paused => true,
            _ => false,
        };
        if own_words || self.target.shown == Some(stop.run) {
            return Ok(None);
        }
        let (vcpu, pc) = (stop.vcpu, stop.pc);
        let insn = self.target.client.inspect(move |m| {
            let bits = m.vcpu(vcpu).map_or(64, |cpu| cpu.mode.bits);
            let mut bytes = [0; 15];
            let got = m.read_virtual(vcpu, pc, &mut bytes);
            disasm::disassemble(&bytes[..got], bits, pc.0, 1).pop()
        })?;
        let insn = insn.map_or(String::new(), |line| format!("  {line}\n"));
        Ok(Some(format!("retrovisor: {stop}\n{insn}")))
    }

    fn reason(&self, stop: &Stop) -> Reason {
        let (tid, travels) = (Debuggee::tid(stop.vcpu), self.target.travels);
        match stop.reason {
            StopReason::Breakpoint(at) if self.target.software.contains(&at.0) => Reason::SwBreak(tid),
            StopReason::Breakpoint(at) if self.target.hardware.contains(&at.0) => Reason::HwBreak(tid),
            StopReason::Watchpoint(hit) => match watched(&hit) {
                Some((kind, addr)) => Reason::Watch { tid, kind, addr },
                None => Reason::SignalWithThread { tid, signal: Signal::SIGTRAP },
            },
            StopReason::HistoryStart if travels => Reason::ReplayLog { tid: Some(tid), pos: Begin },
            StopReason::TraceEnded | StopReason::Ended(_) if travels => {
                Reason::ReplayLog { tid: Some(tid), pos: End }
            }
            reason => Reason::SignalWithThread { tid, signal: signal(reason) },
        }
    }
}

/// A hit in gdb's words: the kind of its watchpoint and an address inside it.
fn watched(hit: &WatchHit) -> Option<(GdbWatch, u64)> {
    let WatchAddr::Virtual(start) = hit.watch.addr else { return None };
    let kind = match hit.watch.kind {
        WatchKind::Read => GdbWatch::Read,
        WatchKind::Write => GdbWatch::Write,
        WatchKind::Access => GdbWatch::ReadWrite,
    };
    // The access may begin before the watched bytes.
    Some((kind, hit.gva.0.max(start.0)))
}

/// The signal that comes closest.
fn signal(reason: StopReason) -> Signal {
    match reason {
        StopReason::Paused => Signal::SIGINT,
        StopReason::TripleFault | StopReason::Diverged | StopReason::Dead => Signal::SIGABRT,
        StopReason::Exception(e) => match e.vector {
            vector::PF | vector::GP | vector::SS | vector::NP | vector::TS => Signal::SIGSEGV,
            vector::UD => Signal::SIGILL,
            vector::DE | vector::MF | vector::XM | vector::OF => Signal::SIGFPE,
            vector::DB | vector::BP => Signal::SIGTRAP,
            vector::AC => Signal::SIGBUS,
            _ => Signal::SIGABRT,
        },
        _ => Signal::SIGTRAP,
    }
}
