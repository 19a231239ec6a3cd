//! The wire, seen from the client: acknowledgements, retransmission, errors, endings.

#![allow(clippy::unwrap_used)]

use super::event_loop::{Ended, Message, serve};
use super::packet::{Frame, Framer, encode};
use crate::session::{Options, Resume, Session, SessionError};
use crate::stop::{Event, Exit};
use crate::testing::{COUNT, COUNTER, JUMP, LOOP, STORE, frozen, session, travelling};
use retrovisor_core::engine::Engine;
use retrovisor_core::{Gpa, Icount};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// A hand-made client over an in-memory wire.
struct Wire {
    to: Sender<Message>,
    from: Receiver<Vec<u8>>,
    framer: Framer,
    waiting: std::collections::VecDeque<u8>,
    thread: JoinHandle<Result<Ended, SessionError>>,
}

struct Out(Sender<Vec<u8>>);

impl std::io::Write for Out {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.send(buf.to_vec()).map_err(std::io::Error::other)?;
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Wire {
    fn connect(session: &Session) -> Self {
        let (to, queue) = mpsc::channel();
        let (out, from) = mpsc::channel();
        let (handle, post) = (session.handle(), to.clone());
        let thread = std::thread::spawn(move || serve(&handle, Out(out), &queue, post));
        Self { to, from, framer: Framer::default(), waiting: Default::default(), thread }
    }

    fn send(&self, bytes: &[u8]) {
        self.to.send(Message::Bytes(bytes.to_vec())).unwrap();
    }

    /// The next thing the server sends.
    fn hear(&mut self) -> Frame {
        loop {
            while let Some(byte) = self.waiting.pop_front() {
                if let Some(frame) = self.framer.push(byte) {
                    return frame;
                }
            }
            self.waiting.extend(self.from.recv_timeout(Duration::from_secs(30)).unwrap());
        }
    }

    /// The next packet, acknowledgements skipped.
    fn reply(&mut self) -> String {
        loop {
            match self.hear() {
                Frame::Packet(body) => return String::from_utf8(body).unwrap(),
                Frame::Ack => {}
                // An empty answer has an empty body.
                Frame::Bad => return String::new(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(&encode(body.as_bytes()));
        self.reply()
    }

    /// The next packet that is no text for the console.
    fn reply_skipping_console(&mut self) -> String {
        loop {
            let reply = self.reply();
            if !reply.starts_with('O') || reply == "OK" {
                return reply;
            }
        }
    }

    fn reply_after_console(&mut self, body: &str) -> String {
        self.send(&encode(body.as_bytes()));
        self.reply_skipping_console()
    }

    fn end(self) -> Result<Ended, SessionError> {
        self.thread.join().unwrap()
    }
}

#[test]
fn packets_are_acknowledged_until_that_is_switched_off() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    wire.send(b"$qC#00");
    assert_eq!(wire.hear(), Frame::Nack, "bad checksum");
    wire.send(&encode(b"qAttached"));
    assert_eq!([wire.hear(), wire.hear()], [Frame::Ack, Frame::Packet(b"1".to_vec())]);
    wire.send(b"-");
    assert_eq!(wire.hear(), Frame::Packet(b"1".to_vec()), "sent again");
    assert_eq!(wire.ask("QStartNoAckMode"), "OK");
    wire.send(b"$qC#00");
    wire.send(&encode(b"qAttached"));
    assert_eq!(wire.hear(), Frame::Packet(b"1".to_vec()));
}

#[test]
fn malformed_packet_is_an_error_and_nothing_is_forgotten() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    assert!(wire.ask("qSupported:multiprocess+").contains("qXfer:features:read+"));
    assert_eq!(wire.ask("QStartNoAckMode"), "OK");
    assert_eq!(wire.ask("Z0,xyz,1"), "E16");
    // Multiprocess thread ids show that the negotiation still holds; no acknowledgement came before them.
    wire.send(&encode(b"qfThreadInfo"));
    assert_eq!(wire.hear(), Frame::Packet(b"mp01.01".to_vec()));
}

#[test]
fn memory_errors_are_efault_and_short_reads_are_short() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    assert_eq!(wire.ask("m100020,2"), "40a3");
    assert_eq!(wire.ask("m3ffffe,8"), "0* ", "four zeros, run-length encoded");
    assert_eq!(wire.ask("m400000,1"), "E0e");
    assert_eq!(wire.ask("M400000,1:00"), "E0e");
    assert_eq!(wire.ask("M3fffff,1:ab"), "OK");
    assert_eq!(wire.ask("m3fffff,1"), "ab");
    assert_eq!(wire.ask("Pffff=00"), "");
}

#[test]
fn stops_name_the_thread_and_their_kind() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    assert_eq!(wire.ask("?"), "T05thread:1;");
    assert_eq!(wire.ask(&format!("Z0,{STORE:x},1")), "OK");
    let stop = wire.ask("vCont;c");
    assert!(stop.starts_with("T05thread:01;swbreak:;"), "{stop}");
    assert_eq!(wire.ask(&format!("z0,{STORE:x},1")), "OK");
    assert_eq!(wire.ask(&format!("z0,{STORE:x},1")), "E16", "it is not there any more");
    assert_eq!(wire.ask(&format!("Z1,{LOOP:x},1")), "OK");
    let stop = wire.ask("vCont;c");
    assert!(stop.contains("hwbreak:;"), "{stop}");
    let stop = wire.ask("vCont;s:1;c");
    assert!(stop.starts_with("T05thread:01;10:2100"), "{stop}");
}

#[test]
fn ctrl_c_interrupts_and_is_ignored_when_stopped() {
    let session = session(COUNT, Options::default());
    let mut wire = Wire::connect(&session);
    assert_eq!(wire.ask("?"), "T05thread:1;");
    wire.send(b"\x03");
    wire.send(&encode(b"vCont;c"));
    wire.send(b"\x03");
    let stop = wire.reply();
    assert!(stop.starts_with("T02thread:01;"), "{stop}");
}

#[test]
fn client_that_never_speaks_does_not_stop_the_guest() {
    let session = session(COUNT, Options::default());
    let wire = Wire::connect(&session);
    wire.to.send(Message::Closed).unwrap();
    assert_eq!(wire.end(), Ok(Ended::Silent));
    assert_eq!(session.handle().state(), Ok(Event::Running(1)));
}

#[test]
fn client_that_disappears_leaves_a_running_guest_without_its_breakpoints() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    assert_eq!(wire.ask(&format!("Z0,{LOOP:x},1")), "OK");
    wire.to.send(Message::Closed).unwrap();
    assert_eq!(wire.end(), Ok(Ended::Detached));
    let handle = session.handle();
    while handle.when().unwrap().icount.0 < 100 {}
    assert!(matches!(handle.state(), Ok(Event::Running(_))));
}

#[test]
fn kill_packets_end_the_run() {
    for (packet, answer) in [("k", None), ("vKill;1", Some("OK"))] {
        let session = frozen();
        let mut wire = Wire::connect(&session);
        wire.send(&encode(packet.as_bytes()));
        if let Some(answer) = answer {
            assert_eq!(wire.reply(), answer);
        }
        assert_eq!(wire.end(), Ok(Ended::Killed));
        assert_eq!(session.wait(), Exit::Killed);
    }
}

#[test]
fn end_of_the_run_is_told_to_a_waiting_client() {
    let session = frozen();
    let mut wire = Wire::connect(&session);
    wire.ask("?");
    wire.send(&encode(b"vCont;c"));
    while !matches!(session.handle().state(), Ok(Event::Running(_))) {}
    session.handle().kill().unwrap();
    assert!(wire.reply().starts_with('O'), "a console message explains");
    assert_eq!(wire.reply(), "X09");
    assert_eq!(wire.end(), Ok(Ended::Exited(Exit::Killed)));
}

#[test]
fn reverse_execution_is_offered_only_where_there_is_a_history() {
    let (without, with) = (frozen(), travelling(COUNT, Engine::Jit));
    let mut wire = Wire::connect(&without);
    assert!(!wire.ask("qSupported:swbreak+").contains("Reverse"));
    assert_eq!(wire.ask("bs"), "");
    let mut wire = Wire::connect(&with);
    let features = wire.ask("qSupported:swbreak+");
    assert!(features.contains("ReverseContinue+;ReverseStep+"), "{features}");
}

#[test]
fn steps_and_stops_backwards_are_told_as_those_forwards() {
    for engine in [Engine::Jit, Engine::Interp] {
        let session = travelling(COUNT, engine);
        let handle = session.handle();
        let pc = || handle.inspect(|m| m.pc(0).0).unwrap();
        let mut wire = Wire::connect(&session);
        wire.ask("qSupported:swbreak+;hwbreak+;multiprocess+");
        wire.ask("?");
        // Three rounds forward, by a breakpoint.
        assert_eq!(wire.ask(&format!("Z0,{LOOP:x},1")), "OK");
        for _ in 0..3 {
            assert!(wire.ask("vCont;c").contains("swbreak:;"));
        }
        for (hc, at) in [("Hcp1.-1", JUMP), ("Hcp1.0", STORE), ("Hcp1.1", LOOP)] {
            assert_eq!(wire.ask(hc), "OK");
            let stop = wire.ask("bs");
            assert!(stop.starts_with("T05thread:p01.01;"), "{stop}");
            assert_eq!(pc(), at);
        }
        assert_eq!(handle.when().unwrap().icount.0, 6);
        let stop = wire.ask("bc");
        assert!(stop.contains("swbreak:;") && pc() == LOOP, "{stop}");
        assert_eq!(wire.ask(&format!("z0,{LOOP:x},1")), "OK");
        // The store of this round lies ahead; the one before it is stopped at before it is made.
        assert_eq!(wire.ask(&format!("Z2,{COUNTER:x},4")), "OK");
        let stop = wire.ask("bc");
        assert!(stop.contains(";watch:") && pc() == STORE, "{stop}");
        assert_eq!(handle.when().unwrap().icount.0, 1);
        assert_eq!(handle.read_physical(Gpa(COUNTER), 4).unwrap(), [0; 4]);
        assert!(wire.reply_after_console("bc").contains("replaylog:begin;"));
        assert!(wire.reply_after_console("bs").contains("replaylog:begin;"));
        assert_eq!(handle.when().unwrap().icount.0, 0);
        let stop = wire.ask("vCont;c");
        assert!(stop.contains("watch:") && pc() == JUMP, "{stop}");
    }
}

#[test]
fn a_search_backwards_that_is_interrupted_ends_where_it_began() {
    let session = travelling(COUNT, Engine::Jit);
    let mut wire = Wire::connect(&session);
    wire.ask("?");
    let handle = session.handle();
    let run = handle.resume(Resume::Continue { until: Some(Icount(3_000_000)) }).unwrap();
    while !matches!(handle.state(), Ok(Event::Stopped(stop)) if stop.run == run) {}
    // Nothing is ever written there, but the page is.
    assert_eq!(wire.ask(&format!("Z2,{:x},1", COUNTER + 64)), "OK");
    wire.send(&encode(b"bc"));
    wire.send(b"\x03");
    let stop = wire.reply_skipping_console();
    assert!(stop.starts_with("T02") || stop.contains("replaylog:begin"), "{stop}");
    let expected = if stop.starts_with("T02") { 3_000_000 } else { 0 };
    assert_eq!(handle.when().unwrap().icount.0, expected);
}
