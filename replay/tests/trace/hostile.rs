//! Hostile files: random damage, with and without the checksums put right again, never panics, hangs or allocates
//! without bound.

use crate::chaos::{record, replay};
use crate::fake::mix;
use retrovisor_core::clock::ClockKind;
use retrovisor_replay::format::pack::pack;
use retrovisor_replay::record::MemoryFile;
use retrovisor_replay::{Problem, Stats, Trace};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest single allocation of the process.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: passes every request on to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// No test of this binary needs more at once: a seek index or the records of one frame.
const BOUND: usize = 64 << 20;

/// Everything a user can do with a trace.
fn exercise(bytes: Vec<u8>) {
    let trace = match Trace::from_bytes("bad.rvt", bytes) {
        Ok(trace) => trace,
        Err(e) => return assert!(!e.to_string().contains('\n'), "{e}"),
    };
    let _ = trace.ending().when();
    let _ = trace.machine();
    let _ = Stats::of(&trace);
    let packed = MemoryFile::default();
    if let Err(e) = pack(&trace, Box::new(packed.clone()), "packed") {
        assert!(!e.to_string().contains('\n'), "{e}");
    } else {
        assert!(Trace::from_bytes("packed", packed.bytes()).is_ok());
    }
    for record in trace.records() {
        let Ok(record) = record else { break };
        assert!(!record.to_string().contains('\n'));
    }
    // A machine of hostile description need not be run: the fake one has no sane timers then.
    if trace.config().hash_interval == 512
        && trace.config().ns_per_insn < 10
        && trace.ending().when().icount.0 < 20_000
    {
        replay(&trace, 64, None, None);
    }
    assert!(
        LARGEST.load(Ordering::Relaxed) < BOUND,
        "allocated {} bytes at once",
        LARGEST.load(Ordering::Relaxed)
    );
}

/// Offsets of the chunks of a well-formed trace.
fn chunks(bytes: &[u8]) -> Vec<usize> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 16 + u32_at(8);
    let mut all = Vec::new();
    while at + 16 <= bytes.len() {
        all.push(at);
        at += 16 + u32_at(at + 4);
    }
    all
}

/// Puts right the checksum of the header and of every chunk whose length still makes sense.
fn fix_checksums(bytes: &mut [u8], chunks: &[usize]) {
    let body = 16..chunks[0];
    let crc = crc32fast::hash(&bytes[body]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    for &at in chunks {
        let Some(len) = bytes.get(at + 4..at + 8).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as usize)
        else {
            break;
        };
        let mut h = crc32fast::Hasher::new();
        h.update(&bytes[at..at + 12]);
        let Some(stored) = bytes.get(at + 16..at.saturating_add(16).saturating_add(len)) else { continue };
        h.update(stored);
        let crc = h.finalize();
        bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    }
}

/// One random change: flipped bits, an interesting number, a splice, a removal, a repetition.
fn mutate(bytes: &mut Vec<u8>, rng: &mut u64) {
    let mut below = |n: usize| {
        *rng = mix(*rng);
        (*rng >> 8) as usize % n.max(1)
    };
    let len = bytes.len();
    match below(6) {
        0 => (0..=below(8)).for_each(|_| {
            let at = below(len);
            bytes[at] ^= 1 << below(8);
        }),
        1 => {
            let at = below(len.saturating_sub(8));
            let n = [0, 1, u64::MAX, 1 << 62, 1 << 63, 0x7fff_ffff, 0xffff_ffff][below(7)];
            let width = [1, 2, 4, 8][below(4)].min(len - at);
            bytes[at..at + width].copy_from_slice(&n.to_le_bytes()[..width]);
        }
        2 => {
            let (from, n, to) = (below(len), below(200), below(len));
            let part = bytes[from..(from + n).min(len)].to_vec();
            bytes.splice(to..to, part);
        }
        3 => {
            let (from, n) = (below(len), below(100));
            bytes.drain(from..(from + n).min(len));
        }
        4 => {
            let (from, to, n) = (below(len), below(len), below(64));
            let part = bytes[from..(from + n).min(len)].to_vec();
            let end = (to + part.len()).min(len);
            bytes[to..end].copy_from_slice(&part[..end - to]);
        }
        _ => {
            let at = below(len);
            bytes[at] = below(256) as u8;
        }
    }
}

fn fuzz(clock: ClockKind, seed: u64, rounds: u64, fix: bool) {
    let good = record(seed, clock, 6000, false).bytes;
    let places = chunks(&good);
    for round in 0..rounds {
        let mut rng = mix(seed << 32 | round);
        let mut bytes = good.clone();
        for _ in 0..=mix(rng) % 3 {
            mutate(&mut bytes, &mut rng);
        }
        if fix && bytes.len() >= good.len() {
            fix_checksums(&mut bytes, &places);
        }
        // The seed and the round are all that is needed to see a failure again.
        let shown = std::panic::catch_unwind(|| exercise(bytes));
        assert!(shown.is_ok(), "{clock:?} seed {seed} round {round} fix {fix}");
    }
}

#[test]
fn test_random_mutations_never_panic() {
    fuzz(ClockKind::Virtual, 1, 1500, false);
    fuzz(ClockKind::Host, 2, 1500, false);
}

#[test]
fn test_mutations_with_right_checksums_never_panic() {
    fuzz(ClockKind::Virtual, 3, 1500, true);
    fuzz(ClockKind::Host, 4, 1500, true);
}

/// Damage inside the uncompressed records, then compressed again with a right checksum.
#[test]
fn test_mutated_records_never_panic() {
    for (clock, seed) in [(ClockKind::Virtual, 5), (ClockKind::Host, 6)] {
        let good = record(seed, clock, 6000, false).bytes;
        let places = chunks(&good);
        for round in 0..1500u64 {
            let mut rng = mix(seed << 40 | round);
            let mut bytes = good[..places[0]].to_vec();
            for (n, &at) in places.iter().enumerate() {
                let next = places.get(n + 1).copied().unwrap_or(good.len());
                if good[at] != 2 || !mix(rng ^ n as u64).is_multiple_of(3) {
                    bytes.extend_from_slice(&good[at..next]);
                    continue;
                }
                let stored = &good[at + 16..next];
                let mut raw = if good[at + 1] == 1 {
                    zstd::bulk::decompress(stored, 1 << 20).unwrap()
                } else {
                    stored.to_vec()
                };
                mutate(&mut raw, &mut rng);
                let mut head = vec![2, 0, 0, 0];
                head.extend_from_slice(&(raw.len() as u32).to_le_bytes());
                head.extend_from_slice(&(raw.len() as u32).to_le_bytes());
                let mut h = crc32fast::Hasher::new();
                h.update(&head);
                h.update(&raw);
                head.extend_from_slice(&h.finalize().to_le_bytes());
                bytes.extend(head);
                bytes.extend(raw);
            }
            let shown = std::panic::catch_unwind(|| exercise(bytes));
            assert!(shown.is_ok(), "{clock:?} seed {seed} round {round}");
        }
    }
}

#[test]
fn test_compression_bomb_and_huge_sizes_allocate_little() {
    let good = record(7, ClockKind::Virtual, 1000, false).bytes;
    let first = chunks(&good)[0];
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    (0..200).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
    let bomb = encoder.finish().unwrap();
    for raw in [200u32 << 20, 256 << 10, u32::MAX] {
        let mut bytes = good[..first].to_vec();
        let mut head = vec![2, 1, 0, 0];
        head.extend_from_slice(&(bomb.len() as u32).to_le_bytes());
        head.extend_from_slice(&raw.to_le_bytes());
        let mut h = crc32fast::Hasher::new();
        h.update(&head);
        h.update(&bomb);
        head.extend_from_slice(&h.finalize().to_le_bytes());
        bytes.extend(head);
        bytes.extend_from_slice(&bomb);
        exercise(bytes);
    }
}

#[test]
fn test_not_a_trace_is_refused_by_what_it_is() {
    let problem = |bytes: &[u8]| Trace::from_bytes("x", bytes.to_vec()).unwrap_err().problem;
    assert_eq!(problem(b""), Problem::Empty);
    assert_eq!(problem(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0"), Problem::NotATrace);
    let mut bytes = record(7, ClockKind::Virtual, 100, false).bytes;
    for (found, expected) in [(1, Problem::OldVersion { found: 1 }), (3, Problem::Version { found: 3 })] {
        bytes[4] = found;
        assert_eq!(problem(&bytes), expected);
    }
}
