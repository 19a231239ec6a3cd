//! The line that says how a replay went.

use retrovisor_replay::Report;

/// One line on an exact replay of `file`.
pub fn line(file: &str, report: &Report) -> String {
    let Report { when, hashes, hash, reason, cut, wrong_checkpoint } = report;
    let icount = when.icount;
    let points = format!("{hashes} hash point{}", if *hashes == 1 { "" } else { "s" });
    let line = match (reason, cut) {
        (_, Some(cut)) => {
            format!("{file}: exact up to the cut: {icount} instructions, {points} equal; {cut}")
        }
        (Some(reason), None) => {
            format!("{file}: exact: {icount} instructions, {points} equal, final state {hash}; {reason}")
        }
        (None, None) => format!("{file}: exact: {icount} instructions, {points} equal, state {hash}"),
    };
    let wrong = "; a checkpoint in it is wrong: `trace checkpoint` makes them anew";
    line + if *wrong_checkpoint { wrong } else { "" }
}
