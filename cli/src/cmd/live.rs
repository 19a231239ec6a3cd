//! A session with its surroundings: the gdb server and the console around a machine that runs or replays. Owns the
//! way from a session's end to an exit code.

use crate::console::{Console, Quit};
use crate::exit;
use anyhow::{Context, Result};
use retrovisor_core::input::InputEvent;
use retrovisor_debug::gdb::{GdbAddress, GdbServer};
use retrovisor_debug::{Exit, Options, Session};
use retrovisor_replay::{InputSource, Machine, Mailbox};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What surrounds the machine.
pub struct Around {
    pub options: Options,
    /// Standard input is the guest's serial console.
    pub console: bool,
}

/// How a session ended.
pub struct Ended {
    pub exit: Exit,
    /// The machine as it stands, unless an internal bug took it.
    pub vm: Option<Machine>,
    /// Set when a key or signal ended the run: the process's exit code.
    pub quit: Option<u8>,
}

/// Binds the gdb server, so that an address in use is an error before anything starts.
pub fn bind(gdb: Option<&str>) -> Result<Option<GdbServer>> {
    let Some(text) = gdb else { return Ok(None) };
    let address: GdbAddress = text.parse().with_context(|| "--gdb")?;
    Ok(Some(GdbServer::bind(&address).context("--gdb")?))
}

/// Runs `vm` in a session until it ends.
pub fn session(
    vm: impl Into<Machine>,
    mailbox: &Arc<Mailbox>,
    server: Option<GdbServer>,
    around: &Around,
) -> Result<Ended> {
    // The guest may wait for input before the console is up.
    let source = around.console.then(|| mailbox.source());
    let interrupt = Arc::clone(mailbox);
    let session = Session::spawn(vm, move || interrupt.interrupt(), around.options)?;
    let quit = Arc::new(AtomicU8::new(NO_QUIT));
    let _console = console(&session, source, &quit)?;
    let server = match server {
        Some(s) => Some(s.serve(session.handle(), |line| eprintln!("retrovisor: {line}"))?),
        None => None,
    };
    if let Some(s) = &server {
        let wait = if around.options.freeze { ", waiting before the first instruction" } else { "" };
        eprintln!("retrovisor: gdb server at {}{wait}", s.address());
    }
    let exit = session.wait();
    if let Some(s) = server {
        s.finish();
    }
    let quit = match quit.load(Ordering::Acquire) {
        NO_QUIT => None,
        code => Some(code),
    };
    Ok(Ended { exit, vm: session.join().ok(), quit })
}

/// No key or signal ended the run.
const NO_QUIT: u8 = u8::MAX;

/// `source`: where standard input goes, if it is the guest's console.
fn console(session: &Session, source: Option<InputSource>, quit: &Arc<AtomicU8>) -> Result<Console> {
    let (handle, code) = (session.handle(), Arc::clone(quit));
    let on_quit = move |q: Quit| {
        code.store(q.code(), Ordering::Release);
        // A session that is gone has ended already.
        let _ = handle.kill();
    };
    match source {
        Some(s) => Console::start(move |e: InputEvent| s.push(e), on_quit).context("standard input"),
        None => Console::without_input(on_quit).context("signals"),
    }
}

/// The process's exit code for a session's end, and the line to say about it, if it needs one.
pub fn exit_code(ended: &Ended) -> (u8, Option<String>) {
    if let Some(code) = ended.quit {
        return (code, None);
    }
    let line = Some(ended.exit.to_string());
    match ended.exit {
        Exit::PowerOff => (0, None),
        Exit::DebugExit(v) => ((v as u8) << 1 | 1, None),
        Exit::Killed => (0, Some("the debugger ended the run".into())),
        Exit::TraceEnded => (0, None),
        Exit::Reset => (exit::RESET, line),
        Exit::TripleFault => (exit::RESET, line),
        Exit::Dead => (exit::DEAD, line),
        Exit::Diverged => (exit::DIVERGED, line),
        Exit::Bug => (exit::BUG, line),
    }
}
