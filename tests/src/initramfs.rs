//! An initramfs made in memory: a cpio archive ("newc") with busybox and an init script.

/// Builds a cpio archive.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, rdev: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let fields =
            [self.inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, rdev.0, rdev.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for f in fields {
            self.bytes.extend_from_slice(format!("{f:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    pub fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, 0o100_000 | mode, (0, 0), data);
    }
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, 0o120_777, (0, 0), target.as_bytes());
    }
    pub fn chardev(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, 0o020_600, (major, minor), &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

/// Commands that the guest tests use.
const APPLETS: &[&str] = &[
    "sh",
    "ls",
    "ps",
    "dmesg",
    "sha256sum",
    "dd",
    "cat",
    "echo",
    "mount",
    "poweroff",
    "reboot",
    "setsid",
    "cttyhack",
    "seq",
    "true",
    "uname",
    "date",
    "free",
    "grep",
    "head",
    "tail",
    "wc",
    "sleep",
    "stty",
    "id",
    "kill",
    "top",
];

/// An initramfs whose init mounts the usual file systems, says `guest ready`, and becomes a shell on the console.
/// When the shell ends the guest powers off.
pub fn shell(busybox: &[u8]) -> Vec<u8> {
    with_init(
        busybox,
        "#!/bin/sh\nmount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
         export HOME=/ PS1='# ' PATH=/bin\necho guest ready\nsetsid cttyhack sh\npoweroff -f\n",
    )
}

/// An initramfs with busybox and this `/init`.
pub fn with_init(busybox: &[u8], init: &str) -> Vec<u8> {
    let mut c = Cpio::default();
    for d in ["bin", "dev", "proc", "sys", "tmp"] {
        c.dir(d);
    }
    c.chardev("dev/console", 5, 1);
    c.file("bin/busybox", 0o755, busybox);
    for a in APPLETS {
        c.link(&format!("bin/{a}"), "busybox");
    }
    c.file("init", 0o755, init.as_bytes());
    c.finish()
}
