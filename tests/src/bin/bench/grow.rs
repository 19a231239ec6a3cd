//! How cost grows with the guest's memory, the number of its processes, and the amount of its code: a cliff shows as a
//! jump from one row to the next.

use crate::guest::Files;
use crate::options::Options;
use crate::peers::Peer;
use crate::run::{self, Run};
use crate::suite::report;
use crate::table::{row, short};

const DEFAULT: [Peer; 2] = [Peer::Jit, Peer::Tcg];

const MEMORY: [&str; 7] = ["128M", "256M", "512M", "1G", "2G", "4G", "8G"];
const PROCESSES: [u64; 7] = [2, 5, 10, 20, 50, 100, 200];
/// KiB of generated code.
const CODE: [u64; 9] = [100, 300, 1000, 3000, 8000, 16_000, 30_000, 45_000, 60_000];

/// Prints the three tables. False if a run failed or a checksum is wrong.
pub fn grow(o: &Options) -> Result<bool, String> {
    let files = Files::new()?;
    let (peers, missing): (Vec<Peer>, Vec<Peer>) =
        o.peers(&DEFAULT).into_iter().partition(|p| p.missing(o).is_none());
    missing.iter().filter_map(|p| p.missing(o)).for_each(|why| println!("{why}"));
    Ok(memory(&files, &peers, o)? & programs(&files, &peers, o)?)
}

/// Seconds to init by guest memory.
fn memory(files: &Files, peers: &[Peer], o: &Options) -> Result<bool, String> {
    println!("\nguest memory: seconds to init, medians of {}", o.reps);
    row("memory", peers.iter().map(|p| p.name().to_owned()));
    let mut good = true;
    for memory in MEMORY {
        let b = files.boot("scale=1 run=getpid", memory, o)?;
        let mut cells = Vec::new();
        for peer in peers {
            let mut seconds = Vec::new();
            for _ in 0..o.reps {
                let (run, done) = run::run(&mut peer.command(&b, o), o);
                good &= report(*peer, &run, done);
                seconds.extend(run.ready);
            }
            cells.push(short(run::median(&seconds)));
        }
        row(memory, cells);
    }
    Ok(good)
}

/// Processes and code, natively and under the peers, in one boot each.
fn programs(files: &Files, peers: &[Peer], o: &Options) -> Result<bool, String> {
    let ring = PROCESSES.map(|n| format!("ring:{n}"));
    let code = CODE.map(|n| format!("code:{n}"));
    let names = [&ring[..], &code[..]].concat().join(",");
    let arguments = format!("scale={} reps={} run={names}", o.scale, o.reps);
    // Wall time: the CPU time of the ring's other processes is not known before they end.
    let (native, done) = run::run(&mut files.native(&arguments, false), o);
    done.map_err(|e| format!("native: {e}"))?;
    let mut runs = vec![("native", native)];
    let b = files.boot(&arguments, "512M", o)?;
    let mut good = true;
    for peer in peers {
        eprintln!("bench: grow under {}", peer.name());
        let (run, done) = run::run(&mut peer.command(&b, o), o);
        good &= report(*peer, &run, done) & agrees(*peer, &run, &runs[0].1);
        runs.push((peer.name(), run));
    }
    let hops = |n: u64| ((20_000 * o.scale / 100).max(1) / n).max(1) * n;
    print(&runs, "processes in a ring: microseconds a hop", &PROCESSES, "ring", 1e6, hops);
    print(&runs, "KiB of code, first call of a function: nanoseconds", &CODE, "code-cold", 1e9, |k| k * 16);
    let calls = (4_000_000 * o.scale / 100).max(1);
    print(&runs, "KiB of code, later calls in turn: nanoseconds a call", &CODE, "code-hot", 1e9, |_| calls);
    Ok(good)
}

fn agrees(peer: Peer, run: &Run, native: &Run) -> bool {
    let wrong = |(name, m): &(&String, &run::Measured)| {
        let right = native.programs.get(*name).and_then(|n| n.checksums.first());
        right.is_some_and(|right| m.checksums.iter().any(|c| c != right))
    };
    let mut good = true;
    for (name, _) in run.programs.iter().filter(wrong) {
        println!("WRONG RESULT: {name} under {} differs from native", peer.name());
        good = false;
    }
    good
}

/// One table: a row for each size, a column for each run; seconds divided by the operations of that size.
fn print(
    runs: &[(&str, Run)],
    title: &str,
    sizes: &[u64],
    program: &str,
    unit: f64,
    operations: impl Fn(u64) -> u64,
) {
    println!("\n{title}");
    row("", runs.iter().map(|(name, _)| (*name).to_owned()));
    for size in sizes {
        let per =
            |r: &Run| r.median(&format!("{program}:{size}")).map(|s| s * unit / operations(*size) as f64);
        row(&size.to_string(), runs.iter().map(|(_, r)| short(per(r))));
    }
}
