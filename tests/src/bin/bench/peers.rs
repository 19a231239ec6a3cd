//! What runs a guest: retrovisor in its modes, QEMU in its. Owns their command lines.

use crate::options::Options;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A way to run a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// retrovisor's default engine, without `--record`.
    Jit,
    Record,
    /// A replay of what [`Peer::Record`] recorded.
    Replay,
    Interp,
    /// `qemu-system-x86_64 -accel tcg`.
    Tcg,
    /// The same with `-icount shift=auto,rr=record`.
    TcgRr,
    TcgReplay,
}

/// What is booted, and where recordings go.
#[derive(Clone, Debug)]
pub struct Boot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub append: String,
    /// As both command lines spell it: `256M`.
    pub memory: String,
    pub dir: PathBuf,
}

impl Boot {
    pub fn recording(&self) -> PathBuf {
        self.dir.join("session.rvt")
    }
    pub fn rr_log(&self) -> PathBuf {
        self.dir.join("session.rr")
    }
}

impl Peer {
    pub const ALL: [Peer; 7] =
        [Peer::Jit, Peer::Record, Peer::Replay, Peer::Interp, Peer::Tcg, Peer::TcgRr, Peer::TcgReplay];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Jit => "jit",
            Peer::Record => "record",
            Peer::Replay => "replay",
            Peer::Interp => "interp",
            Peer::Tcg => "tcg",
            Peer::TcgRr => "tcg-rr",
            Peer::TcgReplay => "tcg-replay",
        }
    }

    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| format!("no peer `{name}`"))
    }

    fn is_qemu(self) -> bool {
        matches!(self, Peer::Tcg | Peer::TcgRr | Peer::TcgReplay)
    }

    /// Why it cannot run here, if so.
    pub fn missing(self, o: &Options) -> Option<String> {
        let program = self.program(o);
        let starts = Command::new(&program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        let hint = if self.is_qemu() { "apt install qemu-system-x86" } else { "cargo build --release" };
        (!starts).then(|| format!("{}: {} is missing: {hint}", self.name(), program.display()))
    }

    fn program(self, o: &Options) -> PathBuf {
        if self.is_qemu() { "qemu-system-x86_64".into() } else { o.retrovisor.clone() }
    }

    /// The command that boots `b` with COM1 on its standard output.
    pub fn command(self, b: &Boot, o: &Options) -> Command {
        let mut c = Command::new(self.program(o));
        if self.is_qemu() {
            self.qemu(&mut c, b)
        } else {
            self.retrovisor(&mut c, b, o)
        }
        c
    }

    fn retrovisor(self, c: &mut Command, b: &Boot, o: &Options) {
        if self == Peer::Replay {
            c.arg("replay").arg(b.recording()).arg("--show");
        } else {
            c.arg("run").arg("--kernel").arg(&b.kernel).arg("--initrd").arg(&b.initrd);
            c.args(["--append", &b.append, "--memory", &b.memory, "--no-reboot"]);
        }
        if self == Peer::Record {
            c.arg("--record").arg(b.recording());
        }
        self.engine(c, o);
    }

    /// The engine is retrovisor's default one, except under [`Peer::Interp`].
    fn engine(self, c: &mut Command, o: &Options) {
        if self == Peer::Interp {
            c.args(["--engine", "interp"]);
        } else {
            o.jit_opts.iter().for_each(|opt| _ = c.args(["--jit-opt", opt]));
        }
    }

    fn qemu(self, c: &mut Command, b: &Boot) {
        c.args(["-accel", "tcg", "-display", "none", "-no-reboot", "-nic", "none", "-monitor", "none"]);
        c.args(["-serial", "stdio", "-m", &b.memory, "-append", &b.append]);
        c.arg("-kernel").arg(&b.kernel).arg("-initrd").arg(&b.initrd);
        let rr = |mode: &str, file: &Path| format!("shift=auto,rr={mode},rrfile={}", file.display());
        match self {
            Peer::TcgRr => _ = c.arg("-icount").arg(rr("record", &b.rr_log())),
            Peer::TcgReplay => _ = c.arg("-icount").arg(rr("replay", &b.rr_log())),
            _ => {}
        }
    }
}
