//! The table of the guest benchmark: each program natively in seconds, each peer as a ratio to native, geometric means by
//! group. A checksum that differs from the native one is an error: the machine computed wrongly.

use crate::guest::Files;
use crate::options::Options;
use crate::peers::{Boot, Peer};
use crate::run::{self, Run};
use crate::table::{geometric_mean, row, short};
use std::collections::BTreeMap;

const DEFAULT: [Peer; 6] = [Peer::Jit, Peer::Record, Peer::Replay, Peer::Interp, Peer::Tcg, Peer::TcgRr];

struct Suite {
    /// Name and group of each program measured.
    programs: Vec<(String, String)>,
    /// By scale.
    native: BTreeMap<u64, Run>,
    /// In the order of the columns, with the scale.
    peers: Vec<(Peer, u64, Run)>,
    scale: u64,
    unit: &'static str,
}

/// Measures and prints. False if a run failed or a checksum is wrong.
pub fn suite(o: &Options) -> Result<bool, String> {
    let files = Files::new()?;
    let all = files.programs()?;
    if o.list {
        all.iter().for_each(|(name, group)| println!("{name:<12} {group}"));
        return Ok(true);
    }
    let programs = select(all, &o.only)?;
    let mut s = Suite {
        programs,
        native: BTreeMap::new(),
        peers: Vec::new(),
        scale: o.scale,
        unit: if o.cpu_time { ", CPU time" } else { "" },
    };
    let mut good = s.measure(&files, o)?;
    s.print(o.reps);
    good &= s.checksums_agree();
    Ok(good)
}

fn select(all: Vec<(String, String)>, only: &[String]) -> Result<Vec<(String, String)>, String> {
    if let Some(unknown) = only.iter().find(|w| !all.iter().any(|(n, g)| n == *w || g == *w)) {
        return Err(format!("no program or group `{unknown}`; `cargo xtask bench list` lists them"));
    }
    Ok(all.into_iter().filter(|(n, g)| only.is_empty() || only.contains(n) || only.contains(g)).collect())
}

impl Suite {
    fn arguments(&self, scale: u64, reps: usize) -> String {
        let names: Vec<&str> = self.programs.iter().map(|(n, _)| n.as_str()).collect();
        format!("scale={scale} reps={reps} run={}", names.join(","))
    }

    fn native(&mut self, scale: u64, files: &Files, o: &Options) -> Result<(), String> {
        if !self.native.contains_key(&scale) {
            eprintln!("bench: native, scale {scale}");
            // Cheap, and everything is divided by it.
            let reps = o.reps.max(5);
            let (run, done) = run::run(&mut files.native(&self.arguments(scale, reps), o.cpu_time), o);
            done.map_err(|e| format!("native: {e}"))?;
            self.native.insert(scale, run);
        }
        Ok(())
    }

    fn measure(&mut self, files: &Files, o: &Options) -> Result<bool, String> {
        let mut good = true;
        self.native(o.scale, files, o)?;
        for peer in o.peers(&DEFAULT) {
            if let Some(why) = peer.missing(o) {
                println!("{why}");
                continue;
            }
            let scale = if peer == Peer::Interp { o.interp_scale } else { o.scale };
            self.native(scale, files, o)?;
            let boot = files.boot(&self.arguments(scale, o.reps), "256M", o)?;
            eprintln!("bench: {}, scale {scale}", peer.name());
            let (run, done) = run::run(&mut peer.command(&boot, o), o);
            good &= report(peer, &run, done);
            log_size(peer, &boot);
            self.peers.push((peer, scale, run));
        }
        Ok(good)
    }

    fn ratio(&self, column: usize, program: &str) -> Option<f64> {
        let (_, scale, run) = &self.peers[column];
        Some(run.median(program)? / self.native.get(scale)?.median(program)?)
    }

    fn print(&self, reps: usize) {
        println!(
            "\nmedians of {reps}{}; native in seconds at scale {}, peers as ratios to native",
            self.unit, self.scale
        );
        row("program", ["native".into()].into_iter().chain(self.peers.iter().map(|p| p.0.name().to_owned())));
        let columns = 0..self.peers.len();
        let mut groups: Vec<&str> = self.programs.iter().map(|(_, g)| g.as_str()).collect();
        groups.dedup();
        for group in groups {
            let members: Vec<&str> =
                self.programs.iter().filter(|(_, g)| g == group).map(|(n, _)| n.as_str()).collect();
            for name in &members {
                let native = self.native.get(&self.scale).and_then(|r| r.median(name));
                let seconds = native.map_or("-".into(), |s| format!("{s:.3}"));
                let ratios = columns.clone().map(|c| short(self.ratio(c, name)));
                row(name, [seconds].into_iter().chain(ratios));
            }
            let means = columns.clone().map(|c| short(self.mean(c, &members)));
            row(&format!("= {group}"), ["".into()].into_iter().chain(means));
        }
        let ready = self.peers.iter().map(|p| short(p.2.ready));
        row("boot to init, seconds", ["".into()].into_iter().chain(ready));
        self.against("recording on against off", Peer::Record, Peer::Jit);
        self.against("replay against record", Peer::Replay, Peer::Record);
        self.against("tcg-rr against tcg", Peer::TcgRr, Peer::Tcg);
        self.against("jit against tcg", Peer::Jit, Peer::Tcg);
    }

    fn mean(&self, column: usize, programs: &[&str]) -> Option<f64> {
        let ratios: Option<Vec<f64>> = programs.iter().map(|p| self.ratio(column, p)).collect();
        geometric_mean(&ratios?)
    }

    /// The geometric mean over all programs of one peer's time against another's.
    fn against(&self, what: &str, a: Peer, b: Peer) {
        let find = |p| self.peers.iter().find(|(peer, ..)| *peer == p).map(|(_, _, run)| run);
        let (Some(a), Some(b)) = (find(a), find(b)) else {
            return;
        };
        let ratios: Vec<f64> =
            self.programs.iter().filter_map(|(n, _)| Some(a.median(n)? / b.median(n)?)).collect();
        let boot = a.ready.zip(b.ready).map(|(a, b)| a / b);
        println!("{what}: programs {}, boot {}", short(geometric_mean(&ratios)), short(boot));
    }

    /// Every repetition under every peer must have computed what the host did.
    fn checksums_agree(&self) -> bool {
        let mut good = true;
        for (peer, scale, run) in &self.peers {
            for (name, measured) in &run.programs {
                let native = self.native.get(scale).and_then(|r| r.programs.get(name));
                let Some(right) = native.and_then(|m| m.checksums.first()) else {
                    continue;
                };
                if let Some(wrong) = measured.checksums.iter().find(|c| *c != right) {
                    println!("WRONG RESULT: {name} under {}: {wrong}, natively {right}", peer.name());
                    good = false;
                }
            }
        }
        good
    }
}

/// Says what went wrong with a run, if anything did.
pub fn report(peer: Peer, run: &Run, done: Result<(), String>) -> bool {
    match done {
        Err(why) => println!("FAILED: {}: {why}", peer.name()),
        Ok(()) if !run.complete => {
            println!("FAILED: {}: {}", peer.name(), run.failure("ended before the benchmark did"));
        }
        Ok(()) => return true,
    }
    false
}

fn log_size(peer: Peer, b: &Boot) {
    let file = match peer {
        Peer::Record => b.recording(),
        Peer::TcgRr => b.rr_log(),
        _ => return,
    };
    if let Ok(m) = std::fs::metadata(file) {
        println!("{}: {} KB on disk", peer.name(), m.len() / 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Measured;

    fn run(seconds: &[f64], checksums: &[&str]) -> Run {
        let m = Measured {
            seconds: seconds.to_vec(),
            checksums: checksums.iter().map(|c| (*c).to_owned()).collect(),
        };
        let mut run = Run::default();
        run.programs.insert("a".into(), m);
        run
    }

    fn suite(peer: Run) -> Suite {
        Suite {
            programs: vec![("a".into(), "integer".into())],
            native: [(10, run(&[0.5], &["1f"]))].into(),
            peers: vec![(Peer::Jit, 10, peer)],
            scale: 10,
            unit: "",
        }
    }

    #[test]
    fn one_wrong_repetition_is_found() {
        assert!(suite(run(&[1.0, 1.0], &["1f", "1f"])).checksums_agree());
        assert!(!suite(run(&[1.0, 1.0], &["1f", "1e"])).checksums_agree());
    }

    #[test]
    fn ratios_are_to_native_and_a_missing_program_has_none() {
        let s = suite(run(&[3.0, 1.0, 2.0], &[]));
        assert_eq!((s.ratio(0, "a"), s.ratio(0, "b")), (Some(4.0), None));
        assert_eq!((s.mean(0, &["a"]), s.mean(0, &["a", "b"])), (Some(4.0), None));
    }

    #[test]
    fn programs_are_chosen_by_name_or_group() {
        let all: Vec<(String, String)> =
            [("sort", "integer"), ("fib", "control")].map(|(n, g)| (n.into(), g.into())).into();
        assert_eq!(select(all.clone(), &["control".into()]).unwrap()[0].0, "fib");
        assert_eq!(select(all.clone(), &[]).unwrap().len(), 2);
        assert!(select(all, &["fob".into()]).unwrap_err().contains("`fob`"));
    }
}
