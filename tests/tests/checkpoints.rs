//! Checkpoints in a trace: they lead to the same states, cut a trace into parts that verify alike, and can be wrong without
//! doing harm. A divergence is narrowed down to its instruction.

#![allow(clippy::unwrap_used)]

use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::InputPort;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::format::writer::{Effort, Frames, TraceWriter};
use retrovisor_replay::mutation::Victim;
use retrovisor_replay::record::MemoryFile;
use retrovisor_replay::rewrite::{checkpoint, trim};
use retrovisor_replay::{
    Ending, ExitReason, Finding, IdlePolicy, Live, Machine, Mailbox, Mutation, Recording, Replay, Report,
    Spread, Stride, Timeline, Trace, VerifyError, VerifyOptions, What, bisect, spread, verify, verify_spread,
};
use retrovisor_tests::random::Rng;
use retrovisor_tests::ticker::{self, Keys, Random};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ENGINES: [Engine; 2] = [Engine::Jit, Engine::Interp];
const EVERY: u64 = 1 << 18;

fn on(engine: Engine) -> VerifyOptions {
    VerifyOptions { engine, ..VerifyOptions::default() }
}

/// The ticker, recorded.
fn recorded(clock: ClockKind) -> Vec<u8> {
    let (config, images) = (ticker::config(clock), ticker::images(200));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let port: Box<dyn InputPort> = match clock {
        ClockKind::Virtual => Box::new(recording.port(Keys::new(None))),
        ClockKind::Host => Box::new(recording.port(Live::new(Mailbox::new(), clock, IdlePolicy::RealTime))),
    };
    let output = Box::new(recording.output(NullSink));
    let mut vm = Vm::new(config, images, port, output).unwrap();
    let exit = vm.run(None);
    assert_eq!(exit, VmExit::DebugExit(ticker::DONE));
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    file.bytes()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn plain(clock: ClockKind) -> Arc<Trace> {
    Trace::from_bytes("plain.rvt", recorded(clock)).unwrap()
}

/// The trace with checkpoints.
fn with_checkpoints(trace: &Arc<Trace>, path: &Path) -> Arc<Trace> {
    let written = checkpoint(trace, path, EVERY, VerifyOptions::default(), &mut |_| ()).unwrap();
    let made = Trace::open(path).unwrap();
    assert_eq!(written.checkpoints, made.checkpoints() as u64);
    assert_eq!(written.checkpoints, (trace.ending().when().icount.0 - 1) / EVERY);
    assert_eq!(written.size, made.size());
    made
}

fn exact(trace: &Arc<Trace>, options: VerifyOptions) -> Report {
    verify(trace, options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"))
}

/// The state at some points, by a run straight ahead.
fn states(trace: &Arc<Trace>, points: &[u64]) -> Vec<StateHash> {
    let mut replay = Replay::new(trace, VerifyOptions::default(), Box::new(NullSink)).unwrap();
    let at = |n: &u64| {
        assert_eq!(replay.vm.run(Some(Icount(*n))), VmExit::Reached);
        replay.vm.state_hash()
    };
    points.iter().map(at).collect()
}

#[test]
fn a_replay_begins_anywhere_and_finds_the_same_states() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        let (files, trace) = (Files::new(), plain(clock));
        let made = with_checkpoints(&trace, &files.path("a.rvt"));
        assert_eq!(exact(&made, on(Engine::Jit)), exact(&trace, on(Engine::Jit)), "the same run");
        let (mut random, end) = (Random(77), trace.ending().when().icount.0);
        let mut points: Vec<u64> = (0..20).map(|_| 1 + random.below(end - 1)).collect();
        points.extend([1, EVERY - 1, EVERY, 2 * EVERY, 2 * EVERY - 1, 2 * EVERY + 1]);
        points.sort_unstable();
        let expected = states(&trace, &points);
        for engine in ENGINES {
            let mut replay =
                Replay::new(&made, on(engine), Box::new(NullSink)).unwrap().with_history(64 << 20);
            let (timeline, vm) = replay.vm.travel().unwrap();
            assert!(timeline.history().len() > made.checkpoints(), "known before the machine ran");
            let mut order: Vec<usize> = (0..points.len()).collect();
            order.sort_by_key(|n| points[*n].wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for n in order {
                timeline.seek(vm, Icount(points[n])).unwrap();
                assert_eq!(
                    (vm.when().icount.0, vm.state_hash()),
                    (points[n], expected[n]),
                    "{clock:?} {engine:?}"
                );
            }
            // From there to the end, and everything the trace says is compared.
            let exit = replay.vm.run(None);
            let report = replay.conclude(exit).unwrap().unwrap();
            assert_eq!(report.when, trace.ending().when());
        }
    }
}

#[test]
fn what_a_trace_knows_of_a_stretch_finds_the_last_writer() {
    let (files, trace) = (Files::new(), plain(ClockKind::Virtual));
    let made = with_checkpoints(&trace, &files.path("a.rvt"));
    let end = trace.ending().when().icount;
    let last = |trace: &Arc<Trace>, gpa: u64| {
        let mut replay =
            Replay::new(trace, VerifyOptions::default(), Box::new(NullSink)).unwrap().with_history(64 << 20);
        let (timeline, vm) = replay.vm.travel().unwrap();
        timeline.seek(vm, Icount(end.0 - 1)).unwrap();
        timeline.last_write(vm, Gpa(gpa), 4).unwrap()
    };
    let ticks = u64::from(ticker::TICKS);
    for gpa in [ticks, ticks + 12, u64::from(ticker::IDT) + 0x20 * 8, 0x10_0040, 0x1b_0000] {
        assert_eq!(last(&made, gpa), last(&trace, gpa), "{gpa:#x}");
    }
}

#[test]
fn checkpoints_stored_while_recording_are_those_made_later() {
    for branches in [false, true] {
        stored_while_recording(branches);
    }
}

fn stored_while_recording(branches: bool) {
    let (config, images) = (ticker::config(ClockKind::Virtual), ticker::images(200));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let mailbox = Mailbox::new();
    let mut machine =
        Machine::from(vm).with_timeline(|vm| Timeline::live(vm, recording.clone(), mailbox, 64 << 20));
    let (timeline, vm) = machine.travel().unwrap();
    timeline.store_checkpoints(recording.checkpointer(EVERY, Icount(0)).unwrap());
    // Going back and forth stores nothing twice.
    timeline.run(vm, Some(Icount(3 * EVERY + 5)));
    timeline.seek(vm, Icount(EVERY - 7)).unwrap();
    timeline.run(vm, Some(Icount(5 * EVERY)));
    if branches {
        timeline.seek(vm, Icount(2 * EVERY - 7)).unwrap();
        assert_eq!(timeline.branch(vm).unwrap(), 2);
        timeline.run(vm, Some(Icount(4 * EVERY)));
        timeline.switch(vm, 1).unwrap();
    }
    let exit = timeline.run(vm, None);
    timeline.finish(vm, ExitReason::from_exit(exit)).unwrap();
    let trace = Trace::from_bytes("live.rvt", file.bytes()).unwrap();
    assert!(trace.checkpoints() > 0 && matches!(trace.ending(), Ending::Complete(_)));
    let mut last = 0;
    for n in 0..trace.checkpoints() {
        let at = trace.checkpoint(n).unwrap().unwrap().at.icount.0;
        assert!(at > last && at.is_multiple_of(EVERY), "{at}");
        last = at;
    }
    let spread = verify_spread(&trace, VerifyOptions::default(), 3, &|_| ()).unwrap();
    assert_eq!(spread, exact(&trace, VerifyOptions::default()));
    // Cut anywhere, too.
    let bytes = file.bytes();
    for part in 1..20 {
        let cut = Trace::from_bytes("cut.rvt", bytes[..bytes.len() * part / 20].to_vec());
        let Ok(cut) = cut else { continue };
        if cut.has_images() {
            let report = verify_spread(&cut, VerifyOptions::default(), 2, &|_| ()).unwrap();
            assert_eq!(report.when, cut.ending().when());
        }
    }
}

#[test]
fn a_trace_verifies_alike_on_any_number_of_threads() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        let (files, trace) = (Files::new(), plain(clock));
        let made = with_checkpoints(&trace, &files.path("a.rvt"));
        let lockstep = VerifyOptions { lockstep: Some(Stride::Instructions(5000)), ..on(Engine::Jit) };
        assert_eq!(spread(&trace, on(Engine::Jit)), Spread::One);
        assert_eq!(spread(&trace, lockstep), Spread::Scouted);
        let whole = exact(&trace, on(Engine::Jit));
        for options in [on(Engine::Jit), on(Engine::Interp), lockstep] {
            for (trace, jobs) in [(&trace, 2), (&made, 1), (&made, 2), (&made, 7)] {
                let report = verify_spread(trace, options, jobs, &|_| ()).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(report, whole, "{clock:?} {options:?} {jobs} threads");
            }
        }
    }
}

#[test]
fn a_part_of_a_trace_replays_and_keeps_its_numbers() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        let (files, trace) = (Files::new(), plain(clock));
        let made = with_checkpoints(&trace, &files.path("a.rvt"));
        let end = trace.ending().when().icount.0;
        let interval = trace.config().hash_interval;
        let ranges = [
            (0, end / 2),
            (EVERY + 5, end),
            (EVERY, 2 * EVERY),
            (end / 2, end / 2 + 1),
            (end / 3, u64::MAX >> 2),
            (0, u64::MAX >> 2),
            (interval - 1, interval),
        ];
        for (turn, (from, to)) in ranges.into_iter().enumerate() {
            let (source, path) = ([&trace, &made][turn % 2], files.path("part.rvt"));
            let range = (Icount(from), Icount(to));
            let written = trim(source, &path, range, VerifyOptions::default(), &mut |_| ()).unwrap();
            let part = Trace::open(&path).unwrap();
            let begin = from / interval * interval;
            assert_eq!((part.start().icount.0, part.ending().when().icount.0), (begin, to.min(end)));
            assert_eq!((written.begin.0, written.end.0, written.size), (begin, to.min(end), part.size()));
            for engine in ENGINES {
                let report = exact(&part, on(engine));
                assert_eq!(report.when.icount.0, to.min(end));
                let reason = if to >= end { ExitReason::DebugExit(ticker::DONE) } else { ExitReason::Quit };
                assert_eq!(report.reason, Some(reason));
                assert_eq!(verify_spread(&part, on(engine), 2, &|_| ()).unwrap(), report);
            }
            // The states are those of the whole run, also for a timeline.
            let points: Vec<u64> =
                [begin, (begin + to.min(end)) / 2, to.min(end) - 1].into_iter().filter(|n| *n > 0).collect();
            let mut replay = Replay::new(&part, VerifyOptions::default(), Box::new(NullSink))
                .unwrap()
                .with_history(64 << 20);
            let (timeline, vm) = replay.vm.travel().unwrap();
            for (n, expected) in points.iter().zip(states(&trace, &points)).rev() {
                timeline.seek(vm, Icount(*n)).unwrap();
                assert_eq!((vm.when().icount.0, vm.state_hash()), (*n, expected), "{clock:?} {from} to {to}");
            }
            // A part of a part, and the part with checkpoints.
            if to.min(end) - begin > 2 * interval {
                let range = (Icount(begin + interval), Icount(begin + 2 * interval - 9));
                trim(&part, &path, range, VerifyOptions::default(), &mut |_| ()).unwrap();
                assert_eq!(exact(&Trace::open(&path).unwrap(), on(Engine::Jit)).when.icount, range.1);
                checkpoint(&part, &path, interval, VerifyOptions::default(), &mut |_| ()).unwrap();
                let again = Trace::open(&path).unwrap();
                assert_eq!((again.start(), again.ending()), (part.start(), part.ending()));
                exact(&again, on(Engine::Jit));
            }
        }
        for (from, to) in [(9, 8), (end + 1, end + 2)] {
            let e = trim(&trace, &files.path("no"), (Icount(from), Icount(to)), on(Engine::Jit), &mut |_| ());
            assert!(!e.unwrap_err().to_string().contains('\n') && !files.path("no").exists());
        }
    }
}

/// The divergence that verification finds.
fn divergence(trace: &Arc<Trace>, options: VerifyOptions) -> retrovisor_replay::Divergence {
    match verify(trace, options, &mut |_| ()) {
        Err(VerifyError::Diverged { divergence, .. }) => divergence,
        other => panic!("{options:?}: {other:?}"),
    }
}

#[test]
fn a_wrong_bit_is_traced_to_the_instruction_that_made_it() {
    let (files, trace) = (Files::new(), plain(ClockKind::Virtual));
    let made = with_checkpoints(&trace, &files.path("a.rvt"));
    let end = trace.ending().when().icount.0;
    let mut random = Random(0xb15ec7);
    // A register that stays, one that is used, memory that is used.
    let victims = ["", ":esi", ":0x1a0008", ":0x10f000"];
    for turn in 0..16 {
        let at = 1 + random.below(end - (2 << 16));
        let at = if turn == 0 { (1 << 16) - 1 } else { at };
        let mutation: Mutation = format!("{at}{}", victims[turn % 4]).parse().unwrap();
        for engine in ENGINES {
            let options = VerifyOptions { mutation: Some(mutation), ..on(engine) };
            let trace = [&trace, &made][turn / 4 % 2];
            let diverged = divergence(trace, options);
            assert!(diverged.after.0 <= at && diverged.at.0 > at, "{mutation}: {diverged}");
            let Finding::Instruction { at: found, mismatch, reference_agrees } =
                bisect(trace, options, &diverged).unwrap()
            else {
                panic!("{mutation}: nothing found")
            };
            assert_eq!(found.0, at, "{engine:?}: {mutation}");
            assert_eq!(reference_agrees, Some(true), "{mutation}");
            let text = Finding::Instruction { at: found, mismatch, reference_agrees }.to_string();
            let place = match mutation.victim {
                Victim::Memory(gpa) => format!("gpa {:#x}", gpa.0),
                Victim::Register(6) => "rsi".into(),
                Victim::Register(_) => "xmm15".into(),
            };
            for part in [&format!("is number {at}: "), &place, "guest code", "agrees with the recording"] {
                assert!(text.contains(part), "{part} is missing in\n{text}");
            }
            // The same on several threads.
            let e = verify_spread(&made, options, 3, &|_| ()).unwrap_err();
            assert!(matches!(e, VerifyError::Diverged { divergence, .. } if divergence.at == diverged.at));
        }
    }
}

#[test]
fn lockstep_sees_a_wrong_bit_at_once() {
    let trace = plain(ClockKind::Virtual);
    let mutation = "300000:esi".parse().ok();
    let options = VerifyOptions { lockstep: Some(Stride::Blocks(1)), mutation, ..on(Engine::Jit) };
    match verify(&trace, options, &mut |_| ()) {
        Err(VerifyError::Lockstep { mismatch, .. }) => {
            assert!(mismatch.from.0 <= 300_001 && mismatch.at.0 > 300_000, "{mismatch}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_recording_that_both_engines_deny_is_said_to_be_wrong() {
    let trace = plain(ClockKind::Virtual);
    let file = MemoryFile::default();
    let (_, images) = trace.machine().unwrap();
    let out = Box::new(file.clone());
    let mut writer = TraceWriter::with_header(out, trace.header(), &images, Effort::Live).unwrap();
    let mut frames = Frames::new(trace.config(), trace.start());
    for mut record in trace.records().map(Result::unwrap) {
        if let What::Hash { hash, .. } = &mut record.what {
            hash.0 ^= u128::from(record.when.icount.0 == 5 << 16);
        }
        assert!(frames.push(&record));
    }
    writer.frame(&frames.end(trace.ending().when())).unwrap();
    let wrong = Trace::from_bytes("wrong.rvt", file.bytes()).unwrap();
    for engine in ENGINES {
        let diverged = divergence(&wrong, on(engine));
        assert_eq!((diverged.after.0, diverged.at.0), (4 << 16, 5 << 16));
        let found = bisect(&wrong, on(engine), &diverged).unwrap();
        assert_eq!(found, Finding::AllAgree { after: Icount(4 << 16), at: Icount(5 << 16) });
        assert!(found.to_string().contains("between instructions 262144 and 327680"));
    }
}

/// Offsets of the chunks of a trace.
fn chunks(bytes: &[u8]) -> Vec<usize> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut all) = (16 + u32_at(8), Vec::new());
    while at + 16 <= bytes.len() {
        all.push(at);
        at += 16 + u32_at(at + 4);
    }
    all
}

/// Replaces the payload of the chunk at `at`, whose checksum is then right again.
fn with_payload(bytes: &[u8], at: usize, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let stored = &bytes[at + 16..at + 16 + u32_at(at + 4)];
    let mut raw = match bytes[at + 1] {
        0 => stored.to_vec(),
        _ => zstd::bulk::decompress(stored, u32_at(at + 8)).unwrap(),
    };
    edit(&mut raw);
    let mut chunk = vec![bytes[at], 0, 0, 0];
    chunk.extend((raw.len() as u32).to_le_bytes());
    chunk.extend((raw.len() as u32).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&chunk);
    crc.update(&raw);
    chunk.extend(crc.finalize().to_le_bytes());
    chunk.extend(&raw);
    [&bytes[..at], &chunk, &bytes[at + 16 + stored.len()..]].concat()
}

#[test]
fn checkpoints_that_are_wrong_or_hostile_do_no_harm() {
    let (files, trace) = (Files::new(), plain(ClockKind::Virtual));
    let path = files.path("a.rvt");
    with_checkpoints(&trace, &path);
    let good = std::fs::read(&path).unwrap();
    let of_checkpoints: Vec<usize> =
        chunks(&good).into_iter().filter(|at| (6..=8).contains(&good[*at])).collect();
    let (mut r, mut given_up) = (Rng(5), 0);
    let points = [EVERY + 3, 3 * EVERY + 9, 5 * EVERY];
    let (expected, whole) = (states(&trace, &points), exact(&trace, VerifyOptions::default()));
    let cases = std::env::var("RETROVISOR_HOSTILE_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(60);
    for case in 0..cases {
        let at = of_checkpoints[r.below(of_checkpoints.len() as u64) as usize];
        let bad = with_payload(&good, at, |raw| {
            for _ in 0..=r.below(3) {
                let n = r.below(raw.len() as u64) as usize;
                match r.below(3) {
                    0 => raw[n] ^= 1 << r.below(8),
                    1 => raw[n] = [0, 1, 0x7f, 0x80, 0xff][r.below(5) as usize],
                    _ if r.below(8) == 0 => raw.truncate(n),
                    _ => raw[n] = raw[n].wrapping_add(1),
                }
            }
        });
        let bad = Trace::from_bytes("bad.rvt", bad).unwrap();
        let report = verify_spread(&bad, VerifyOptions::default(), 2, &|_| ());
        let report = report.unwrap_or_else(|e| panic!("case {case}: {e}"));
        given_up += u32::from(report.wrong_checkpoint);
        assert_eq!((report.when, report.hashes), (whole.when, whole.hashes), "case {case}");
        let mut replay =
            Replay::new(&bad, VerifyOptions::default(), Box::new(NullSink)).unwrap().with_history(64 << 20);
        let (timeline, vm) = replay.vm.travel().unwrap();
        for (n, hash) in points.iter().zip(&expected).rev() {
            timeline.seek(vm, Icount(*n)).unwrap_or_else(|e| panic!("case {case}: {e}"));
            assert_eq!(vm.state_hash(), *hash, "case {case}, instruction {n}");
        }
    }
    assert!(given_up > cases / 8, "{given_up} of {cases}");
}
