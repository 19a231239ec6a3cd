//! The guest benchmark as files: the static program built by cargo, the kernel, the initramfs around the program.

use crate::options::Options;
use crate::peers::Boot;
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs::Cpio;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both peers get the same kernel command line. Retrovisor's CPU model is one whose kernel page tables Linux isolates,
/// QEMU's default one is not, nor is any recent host: without `pti=off` they would be given different work.
const CMDLINE: &str = "console=ttyS0 quiet pti=off";

/// A package, a target and a profile of the build.
const PACKAGE: &str = "retrovisor-bench-guest";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Files of the benchmark; they live as long as this.
pub struct Files {
    pub program: PathBuf,
    dir: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Result<Self, String> {
        let program = build()?;
        Ok(Self { program, dir: tempfile::tempdir().map_err(|e| format!("temporary directory: {e}"))? })
    }

    /// The benchmark as init of Debian's cloud kernel, with `arguments` for it.
    pub fn boot(&self, arguments: &str, memory: &str, o: &Options) -> Result<Boot, String> {
        let program = fs::read(&self.program).map_err(|e| format!("{}: {e}", self.program.display()))?;
        let mut cpio = Cpio::default();
        for d in ["dev", "tmp"] {
            cpio.dir(d);
        }
        cpio.chardev("dev/console", 5, 1);
        cpio.file("init", 0o755, &program);
        let append = format!("{CMDLINE} {} -- {arguments}", o.append);
        boot(self.dir.path(), Kernel::CloudAmd64, &cpio.finish(), append, memory)
    }

    /// A kernel with any initramfs.
    pub fn boot_with(&self, kernel: Kernel, initrd: &[u8], o: &Options) -> Result<Boot, String> {
        boot(self.dir.path(), kernel, initrd, format!("{CMDLINE} {}", o.append), "256M")
    }

    /// The benchmark as a process of the host, measuring its CPU time or wall time.
    pub fn native(&self, arguments: &str, cpu_time: bool) -> Command {
        let mut c = Command::new(&self.program);
        c.args(arguments.split(' '));
        if cpu_time {
            c.arg("clock=cpu");
        }
        c
    }

    /// Every program of the suite with its group.
    pub fn programs(&self) -> Result<Vec<(String, String)>, String> {
        let out = Command::new(&self.program).arg("list").output().map_err(|e| e.to_string())?;
        let pair = |l: &str| l.split_once(' ').map(|(n, g)| (n.to_owned(), g.to_owned()));
        Ok(String::from_utf8_lossy(&out.stdout).lines().filter_map(pair).collect())
    }
}

fn boot(dir: &Path, kernel: Kernel, initrd: &[u8], append: String, memory: &str) -> Result<Boot, String> {
    let b = Boot {
        kernel: dir.join("bzimage"),
        initrd: dir.join("initrd"),
        append,
        memory: memory.to_owned(),
        dir: dir.to_owned(),
    };
    let image = guests::bzimage(kernel).map_err(|e| e.to_string())?;
    let write =
        |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()));
    write(&b.kernel, &image)?;
    write(&b.initrd, initrd)?;
    Ok(b)
}

/// Builds the program: static, so that it can be init without a file beside it; for plain x86-64, so that it runs on
/// every machine measured; in a directory of its own, because its flags differ from the workspace's.
fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target_dir = root.join("target/bench-guest");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(&root)
        .args(["build", "--quiet", "--release", "--locked", "--package", PACKAGE, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static -C target-cpu=x86-64 -C strip=symbols",
        )
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if !built.success() {
        return Err("the guest benchmark does not build (it needs gcc and libc6-dev)".into());
    }
    Ok(target_dir.join(TARGET).join("release").join(PACKAGE))
}
