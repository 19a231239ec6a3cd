//! What was typed.

use crate::peers::Peer;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const USAGE: &str = "\
cargo xtask bench [suite] [boot] [grow] [history] [mips] [OPTIONS]    (nothing named: suite and boot)

  suite  the guest benchmark as init of Debian's cloud kernel under each peer, against the same program run natively
  boot   Debian's kernels to their init under each peer
  grow   how cost grows: guest memory 128 MiB to 8 GiB, 2 to 200 processes, 100 KB to 60 MB of code
  history  a boot and a session of 10 billion instructions: what keeping their history costs, and how fast it is to go back
  mips   compute loops on the interpreter: guest instructions a second

  --only NAME,..     these programs and groups (integer control double sse2 x87 copy rep smc os; `list` lists them)
  --peers PEER,..    jit record replay interp tcg tcg-rr tcg-replay
                     (default: all but tcg-replay; of boot and grow: jit record tcg, jit tcg)
  --scale PERCENT    work of each program; 100 is about a tenth of a second natively  [default: 100]
  --interp-scale P   the same under the interpreter                                   [default: 10]
  --reps N           repetitions; medians are shown                                   [default: 3]
  --jit-opt OPTION   handed to retrovisor as it is; may be given several times
  --retrovisor FILE  measure this binary                              [default: target/release/retrovisor]
  --history MIB      memory for the history                                           [default: 512]
  --cpu-time         CPU time instead of wall time: for a machine that has other things to do
  --append STRING    more for the guest kernel's command line
  --timeout SECONDS  of one run under one peer                                        [default: 1800]
";

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Suite,
    Boot,
    Grow,
    History,
    Mips,
}

#[derive(Debug)]
pub struct Options {
    pub what: Vec<What>,
    pub only: Vec<String>,
    pub list: bool,
    /// Empty: each part's default.
    pub peers: Vec<Peer>,
    pub scale: u64,
    pub interp_scale: u64,
    pub reps: usize,
    pub jit_opts: Vec<String>,
    pub retrovisor: PathBuf,
    pub append: String,
    pub cpu_time: bool,
    /// MiB.
    pub history: u64,
    pub timeout: Duration,
}

impl Options {
    /// `None` if help is asked for.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut o = Self {
            what: Vec::new(),
            only: Vec::new(),
            list: false,
            peers: Vec::new(),
            scale: 100,
            interp_scale: 10,
            reps: 3,
            jit_opts: Vec::new(),
            retrovisor: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/retrovisor"),
            append: String::new(),
            cpu_time: false,
            history: 512,
            timeout: Duration::from_secs(1800),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "suite" => o.what.push(What::Suite),
                "boot" => o.what.push(What::Boot),
                "grow" => o.what.push(What::Grow),
                "history" => o.what.push(What::History),
                "mips" => o.what.push(What::Mips),
                "list" => {
                    o.what.push(What::Suite);
                    o.list = true;
                }
                "--only" => o.only = value()?.split(',').map(str::to_owned).collect(),
                "--peers" => o.peers = value()?.split(',').map(Peer::parse).collect::<Result<_, _>>()?,
                "--scale" => o.scale = number(&value()?)?,
                "--interp-scale" => o.interp_scale = number(&value()?)?,
                "--reps" => o.reps = number(&value()?)? as usize,
                "--jit-opt" => o.jit_opts.push(value()?),
                "--retrovisor" => o.retrovisor = value()?.into(),
                "--history" => o.history = number(&value()?)?,
                "--cpu-time" => o.cpu_time = true,
                "--append" => o.append = value()?,
                "--timeout" => o.timeout = Duration::from_secs(number(&value()?)?),
                _ => return Err(format!("`{arg}` is no argument")),
            }
        }
        if o.what.is_empty() {
            o.what = vec![What::Suite, What::Boot];
        }
        Ok(Some(o))
    }

    /// The peers asked for, or `default`.
    pub fn peers(&self, default: &[Peer]) -> Vec<Peer> {
        let wanted = if self.peers.is_empty() { default } else { &self.peers };
        // A replay needs its recording: in this order each comes after what it replays.
        Peer::ALL.into_iter().filter(|p| wanted.contains(p)).collect()
    }
}

/// A number that is not zero.
fn number(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}`: a number above 0 is needed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split(' ').filter(|a| !a.is_empty()).map(str::to_owned))
    }

    #[test]
    fn peers_run_in_an_order_in_which_recordings_come_first() {
        let o = parse("--peers replay,tcg,record").unwrap().unwrap();
        assert_eq!(o.peers(&[]), [Peer::Record, Peer::Replay, Peer::Tcg]);
        assert_eq!(o.what, [What::Suite, What::Boot]);
    }

    #[test]
    fn bad_arguments_are_named() {
        assert_eq!(parse("--scale 0").unwrap_err(), "`0`: a number above 0 is needed");
        assert_eq!(parse("--reps").unwrap_err(), "--reps needs a value");
        assert_eq!(parse("fast").unwrap_err(), "`fast` is no argument");
        assert!(parse("boot -h").unwrap().is_none());
    }
}
