//! Guest images from Debian packages: fetched with the distribution's own tools into `target/guests`, unpacked there,
//! and kept. Nothing on the machine outside `target/` is changed: apt runs with its own state directory, so packages
//! of a foreign architecture need no system-wide set-up.

use crate::{initramfs, lz4};
use retrovisor_core::loader::Images;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guest kernel Debian ships.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    Amd64,
    CloudAmd64,
    I686,
    I686Pae,
}

impl Kernel {
    pub const ALL: [Kernel; 4] = [Kernel::Amd64, Kernel::CloudAmd64, Kernel::I686, Kernel::I686Pae];

    fn meta_package(self) -> &'static str {
        match self {
            Kernel::Amd64 => "linux-image-amd64",
            Kernel::CloudAmd64 => "linux-image-cloud-amd64",
            Kernel::I686 => "linux-image-686",
            Kernel::I686Pae => "linux-image-686-pae",
        }
    }

    /// The architecture of its user programs.
    pub fn arch(self) -> Arch {
        match self {
            Kernel::Amd64 | Kernel::CloudAmd64 => Arch::Amd64,
            Kernel::I686 | Kernel::I686Pae => Arch::I386,
        }
    }
}

/// A Debian architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arch {
    Amd64,
    I386,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::I386 => "i386",
        }
    }
}

/// Why a guest image is not to be had; one line.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

type Result<T> = std::result::Result<T, Missing>;

fn missing<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Missing + '_ {
    move |e| Missing(format!("{what}: {e}"))
}

/// `target/guests` of this workspace.
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests")
}

/// The bzImage of a kernel.
pub fn bzimage(kernel: Kernel) -> Result<Vec<u8>> {
    let root = package(kernel.meta_package(), kernel.arch(), |p| p.starts_with("linux-image-"))?;
    let boot = root.join("boot");
    let entry = fs::read_dir(&boot)
        .map_err(missing("guest kernel"))?
        .filter_map(|e| e.ok())
        .find(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .ok_or_else(|| Missing(format!("{}: no vmlinuz in the package", boot.display())))?;
    fs::read(entry.path()).map_err(missing("guest kernel"))
}

/// The statically linked busybox of an architecture.
pub fn busybox(arch: Arch) -> Result<Vec<u8>> {
    let root = package("busybox-static", arch, |_| false)?;
    fs::read(root.join("bin/busybox")).map_err(missing("busybox"))
}

/// The uncompressed kernel a bzImage carries (an ELF file), kept beside the package.
pub fn vmlinux(kernel: Kernel) -> Result<Vec<u8>> {
    let cached = dir().join(format!("{}.vmlinux", kernel.meta_package()));
    if let Ok(bytes) = fs::read(&cached) {
        return Ok(bytes);
    }
    let bytes = extract_vmlinux(&bzimage(kernel)?)?;
    write_atomically(&cached, &bytes)?;
    Ok(bytes)
}

/// A kernel, uncompressed, to a busybox shell on the serial console.
pub fn shell(kernel: Kernel) -> Result<Images> {
    Ok(Images {
        kernel: Some(vmlinux(kernel)?),
        initrd: Some(initramfs::shell(&busybox(kernel.arch())?)),
        cmdline: "console=ttyS0".into(),
        kernel_name: "vmlinux".into(),
        ..Images::default()
    })
}

/// Decompresses the xz or LZ4 payload of a bzImage.
fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    let payload = retrovisor_core::loader::bzimage_payload(bzimage).map_err(missing("bzImage payload"))?;
    if lz4::is_lz4(payload) {
        return lz4::decode(payload).ok_or_else(|| Missing("bzImage payload: damaged LZ4 data".into()));
    }
    let mut out = Vec::new();
    let mut reader = lzma_rust2::XzReader::new(payload, false);
    std::io::Read::read_to_end(&mut reader, &mut out).map_err(missing("bzImage payload"))?;
    Ok(out)
}

/// Fetches and unpacks `name`, or the package a meta-package depends on if `follow` accepts its name.
fn package(name: &str, arch: Arch, follow: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let dest = dir().join(format!("{name}-{}", arch.name()));
    if dest.is_dir() {
        return Ok(dest);
    }
    let _lock = Lock::take()?;
    if dest.is_dir() {
        return Ok(dest);
    }
    let apt = Apt::ready()?;
    let deb = apt.fetch(name, arch, follow)?;
    let tmp = dest.with_extension("partial");
    let _ = fs::remove_dir_all(&tmp);
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tmp))?;
    fs::remove_file(&deb).map_err(missing("apt"))?;
    fs::rename(&tmp, &dest).map_err(missing("unpacking"))?;
    Ok(dest)
}

/// apt with its own state, so that it needs no privileges and changes nothing.
struct Apt {
    options: Vec<String>,
    downloads: PathBuf,
}

impl Apt {
    fn ready() -> Result<Self> {
        let root = dir().join("apt");
        for d in ["state/lists/partial", "cache/archives/partial", "downloads"] {
            fs::create_dir_all(root.join(d)).map_err(missing("target/guests"))?;
        }
        let root = fs::canonicalize(root).map_err(missing("target/guests"))?;
        let status = root.join("status");
        fs::write(&status, b"").map_err(missing("target/guests"))?;
        let options = [
            format!("Dir::State={}", root.join("state").display()),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache={}", root.join("cache").display()),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            "APT::Architectures::=i386".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ]
        .into_iter()
        .flat_map(|o| ["-o".to_owned(), o])
        .collect();
        let apt = Self { options, downloads: root.join("downloads") };
        if !root.join("updated").exists() {
            apt.update()?;
        }
        Ok(apt)
    }

    /// Fetches the package lists.
    fn update(&self) -> Result<()> {
        eprintln!("fetching Debian package lists into target/guests");
        // Some index files may fail (a mirror being synced); what is missing shows when a package is looked up.
        let _ = self.command("apt-get").args(["-qq", "update"]).output();
        fs::write(dir().join("apt/updated"), b"").map_err(missing("target/guests"))
    }

    /// Resolves and downloads a package. Lists may be older than the mirror or half fetched: one more try with new ones.
    fn fetch(&self, name: &str, arch: Arch, follow: impl Fn(&str) -> bool) -> Result<PathBuf> {
        let attempt = || self.download(&self.resolve(name, arch, &follow)?);
        attempt().or_else(|_| {
            self.update()?;
            attempt().map_err(|Missing(why)| {
                Missing(format!(
                    "Debian's {name}:{} cannot be fetched; is this machine online? {why}",
                    arch.name()
                ))
            })
        })
    }

    fn command(&self, tool: &str) -> Command {
        let mut c = Command::new(tool);
        c.args(&self.options).env("LC_ALL", "C").stdin(std::process::Stdio::null());
        c
    }

    /// `name:arch`, or its first dependency that `follow` accepts.
    fn resolve(&self, name: &str, arch: Arch, follow: &impl Fn(&str) -> bool) -> Result<String> {
        let full = format!("{name}:{}", arch.name());
        let out = run(self.command("apt-cache").arg("depends").arg(&full))?;
        let dep = out
            .lines()
            .filter_map(|l| l.trim().strip_prefix("Depends: "))
            .map(|d| d.split(':').next().unwrap_or(d))
            .find(|d| follow(d));
        Ok(dep.map_or(full, |d| format!("{d}:{}", arch.name())))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        eprintln!("fetching {package} into target/guests");
        run(self.command("apt-get").args(["-qq", "download", package]).current_dir(&self.downloads))?;
        let base = package.split(':').next().unwrap_or(package);
        fs::read_dir(&self.downloads)
            .map_err(missing("apt"))?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{base}_"))))
            .ok_or_else(|| Missing(format!("apt-get download {package} left no file")))
    }
}

/// Runs a tool; its stdout, or one line on what failed.
fn run(c: &mut Command) -> Result<String> {
    let tool = c.get_program().to_string_lossy().into_owned();
    let out =
        c.output().map_err(|e| Missing(format!("{tool}: {e} (guest tests need Debian's apt and dpkg)")))?;
    if !out.status.success() {
        let err = String::from_utf8_lossy(&out.stderr);
        return Err(Missing(format!("{tool} failed: {}", err.lines().last().unwrap_or("no message"))));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = path.with_extension(format!("tmp{}", std::process::id()));
    fs::write(&tmp, bytes).map_err(missing("target/guests"))?;
    fs::rename(&tmp, path).map_err(missing("target/guests"))
}

/// One fetch at a time among test processes.
struct Lock {
    _file: fs::File,
}

impl Lock {
    fn take() -> Result<Self> {
        fs::create_dir_all(dir()).map_err(missing("target/guests"))?;
        let file = fs::File::create(dir().join("lock")).map_err(missing("target/guests"))?;
        file.lock().map_err(missing("target/guests/lock"))?;
        Ok(Self { _file: file })
    }
}
