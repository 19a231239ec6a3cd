//! Hostile clients: random bytes, broken packets and well-formed nonsense into a connection, in memory. Whatever
//! comes, nothing panics, the machine lives, and a sane packet afterwards is answered.

#![allow(clippy::unwrap_used)]

use super::event_loop::{Ended, Message, serve};
use super::packet::encode;
use crate::testing::{COUNT, frozen, travelling};
use retrovisor_core::engine::Engine;
use std::sync::{Arc, Mutex, mpsc};

/// Cases a test run tries; each is a connection of its own with many packets.
const CASES: u64 = 60;

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }
    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
    fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.below(max + 1)).map(|_| self.next() as u8).collect()
    }
}

/// Beginnings of packets that do something, and what they are usually followed by. `k`, `D` and `vKill` are left out:
/// they end the connection.
const COMMANDS: &[&str] = &[
    "qSupported:",
    "qSupported:multiprocess+;swbreak+",
    "QStartNoAckMode",
    "?",
    "g",
    "G",
    "G00",
    "p",
    "p10",
    "P0=",
    "P10=1",
    "m",
    "m100000,8",
    "mffffffffffffffff,2",
    "m0,ffffffffffffffff",
    "M100000,1:90",
    "X100000,1:",
    "Z0,100020,1",
    "z0,100020,1",
    "Z1,",
    "Z2,200000,4",
    "z2,200000,4",
    "Z3,ffffffffffffffff,ffffffffffffffff",
    "Z4,0,0",
    "Hg0",
    "Hg1",
    "Hgp1.1",
    "Hc-1",
    "Hg-1",
    "T1",
    "T9",
    "vCont?",
    "vCont;c",
    "vCont;s:1",
    "vCont;s:1;c",
    "vCont;r100020,100028:1",
    "vCont;t",
    "vCont",
    "s",
    "c",
    "qfThreadInfo",
    "qsThreadInfo",
    "qThreadExtraInfo,1",
    "qXfer:features:read:target.xml:0,fff",
    "qXfer:features:read:target.xml:ffffffff,ffffffff",
    "qXfer:features:read:x:0,10",
    "qRcmd,",
    "qRcmd,68656c70",
    "qRcmd,7074203078",
    // seek 0
    "qRcmd,7365656b2030",
    // seek +9
    "qRcmd,7365656b202b39",
    // mark a
    "qRcmd,6d61726b2061",
    // goto a
    "qRcmd,676f746f2061",
    // back io
    "qRcmd,6261636b20696f",
    // lastwrite 0x200000
    "qRcmd,6c6173747772697465203078323030303030",
    // branch
    "qRcmd,6272616e6368",
    "qRcmd,7870202f393939397862",
    "qAttached",
    "qC",
    "qOffsets",
    "vMustReplyEmpty",
    "vRun;",
    "vAttach;1",
    "R00",
    "!",
    "bc",
    "bs",
    "qTStatus",
    "QTDP:1",
    "vFile:open:",
    "qCRC:0,1",
    "jThreadsInfo",
    "x0,1",
    "qRegisterInfo0",
    "QPassSignals:",
    "vFlashErase:0,1",
    "i",
    "I",
    "t",
    "_M1,",
    "qSearch:memory:0;1;0",
];

fn packet(r: &mut Random) -> Vec<u8> {
    let mut body = r.pick(COMMANDS).as_bytes().to_vec();
    match r.below(6) {
        0 => body.extend((0..r.below(40)).map(|_| b"0123456789abcdef,:;=-*}"[r.below(23)])),
        1 => body.extend(r.bytes(20).iter().filter(|b| !b"#$".contains(b))),
        2 if !body.is_empty() => {
            let at = r.below(body.len());
            body[at] = 0x20 + (r.next() % 95) as u8;
        }
        3 => body.truncate(r.below(body.len() + 1)),
        _ => {}
    }
    let ends = [&b"k"[..], b"D", b"vKill"].iter().any(|end| body.starts_with(end));
    if ends || body.contains(&b'#') { encode(b"?") } else { encode(&body) }
}

fn input(r: &mut Random) -> Vec<u8> {
    match r.below(8) {
        0 => r.bytes(60).into_iter().filter(|b| *b != b'$').collect(),
        1 => vec![*b"+-\x03#}".get(r.below(5)).unwrap()],
        2 => {
            let mut broken = packet(r);
            let at = r.below(broken.len());
            broken[at] ^= 1 << r.below(8);
            // Not a detach or kill by accident; and let it end.
            if broken.windows(2).any(|w| matches!(w, b"$k" | b"$D" | b"$v")) {
                Vec::new()
            } else {
                [broken, b"#00".to_vec()].concat()
            }
        }
        _ => packet(r),
    }
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Heard {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_input_panics_or_kills_the_session() {
    for seed in 1..=CASES {
        // Every other one can go back.
        let session = if seed % 2 == 0 { travelling(COUNT, Engine::Jit) } else { frozen() };
        let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (post, queue) = mpsc::channel();
        for _ in 0..100 {
            post.send(Message::Bytes(input(&mut r))).unwrap();
        }
        // A packet may be open still; then a sane one.
        post.send(Message::Bytes(b"#00+".to_vec())).unwrap();
        post.send(Message::Bytes(encode(b"qfThreadInfo"))).unwrap();
        post.send(Message::Closed).unwrap();
        let heard = Heard::default();
        let ended = serve(&session.handle(), heard.clone(), &queue, post);
        // The client may well have written registers so that the guest ends its run.
        assert!(matches!(ended, Ok(Ended::Detached | Ended::Exited(_))), "seed {seed}: {ended:?}");
        assert!(session.handle().when().is_ok(), "seed {seed}: the VM thread is gone");
        let heard = heard.0.lock().unwrap();
        let tail = String::from_utf8_lossy(&heard[heard.len().saturating_sub(400)..]).into_owned();
        // If the guest was running, its end may be told behind it.
        let is_last = |answer: &str| match ended {
            Ok(Ended::Exited(_)) => tail.contains(answer),
            _ => tail.ends_with(answer),
        };
        assert!(
            is_last("$m01#ce") || is_last("$mp01.01#cd"),
            "seed {seed}: no sane answer at the end: {tail}"
        );
        session.join().unwrap();
    }
}
