//! The Linux entry state: zero page (`boot_params`), command line, initrd. Owns the zero page's layout.
//! Source: Documentation/arch/x86/boot.rst and zero-page.rst of Linux.

use super::bytes::{c_string, low32};
use super::elf::Elf;
use super::memory_map::memory_map;
use super::{Boot, LoadError, bzimage, entry};
use crate::addr::PAGE_SIZE;
use crate::vcpu::gpr;

/// Most entries the zero page's memory map holds.
const MAP_ENTRIES: usize = 128;
/// Highest initrd address of a kernel that does not say: 64-bit, and 32-bit with the usual 3:1 split.
const INITRD_MAX_64: u64 = 0x7fff_ffff;
const INITRD_MAX_32: u64 = 0x37ff_ffff;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// 64-bit mode at this address, RSI pointing to the zero page.
    Long(u64),
    /// 32-bit protected mode at this address, ESI pointing to the zero page.
    Protected(u64),
}

/// The zero page.
pub(super) struct ZeroPage(Box<[u8; PAGE_SIZE as usize]>);

impl ZeroPage {
    /// A zero page with the kernel's own setup header (empty for an image without one).
    pub fn new(header: &[u8]) -> Self {
        let mut page = Self(Box::new([0; PAGE_SIZE as usize]));
        page.put(bzimage::HEADER as usize, header);
        page
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(b) = self.0.get_mut(at..at + bytes.len()) {
            b.copy_from_slice(bytes);
        }
    }
    pub fn put_u32(&mut self, at: usize, v: u32) {
        self.put(at, &v.to_le_bytes())
    }
    fn put_u64(&mut self, at: usize, v: u64) {
        self.put(at, &v.to_le_bytes())
    }

    /// What every kernel is told: the loader, an 80x25 VGA text screen, no video-mode request.
    fn fill_fixed(&mut self) {
        // screen_info: mode 3, 80 columns, 25 lines, VGA, 16-line font.
        self.put(0x06, &[3, 80]);
        self.put(0x0e, &[25, 1, 16]);
        self.put(0x1fa, &0xffffu16.to_le_bytes());
        // boot_flag and header magic, for kernels (or tools) that check them.
        self.put(0x1fe, &0xaa55u16.to_le_bytes());
        self.put(0x202, b"HdrS");
        // type_of_loader: undefined. loadflags: loaded high, heap_end_ptr valid.
        self.put(0x210, &[0xff]);
        let loadflags = self.0[0x211] | 0x81;
        self.put(0x211, &[loadflags]);
        self.put(0x224, &0xfe00u16.to_le_bytes());
    }

    /// The memory map, and the sizes older kernels read.
    fn fill_memory(&mut self, boot: &Boot<'_>) {
        let entries = memory_map(&boot.layout.mem.map);
        for (i, e) in entries.iter().take(MAP_ENTRIES).enumerate() {
            let at = 0x2d0 + i * 20;
            self.put_u64(at, e.start);
            self.put_u64(at + 8, e.len);
            self.put_u32(at + 16, e.kind as u32);
        }
        self.put(0x1e8, &[entries.len().min(MAP_ENTRIES) as u8]);
        let (_, upper) = super::memory_map::lower_upper_kib(&boot.layout.mem.map);
        self.put_u32(0x1e0, upper);
        self.put(0x02, &(upper.min(0xfc00) as u16).to_le_bytes());
    }

    fn fill_initrd(&mut self, at: u64, len: u64) {
        self.put_u32(0x218, low32(at));
        self.put_u32(0x21c, low32(len));
        self.put_u32(0xc0, (at >> 32) as u32);
        self.put_u32(0xc4, (len >> 32) as u32);
    }
}

/// Places the initrd as high as RAM and `max` (its highest address) allow. `None`: there is none.
pub(super) fn place_initrd(boot: &mut Boot<'_>, max: u64) -> Result<Option<(u64, u64)>, LoadError> {
    let Some(initrd) = boot.images.initrd.as_deref().filter(|i| !i.is_empty()) else {
        return Ok(None);
    };
    let len = initrd.len() as u64;
    let at = boot.layout.place_high("--initrd", len, PAGE_SIZE, max.saturating_add(1).min(1 << 32))?;
    boot.layout.write(at, initrd)?;
    Ok(Some((at, len)))
}

/// Places the initrd, the command line and the zero page, and enters the kernel.
pub(super) fn start(
    mut boot: Boot<'_>,
    mut zero_page: ZeroPage,
    start: Start,
    initrd_max: u64,
) -> Result<(), LoadError> {
    zero_page.fill_fixed();
    zero_page.fill_memory(&boot);
    zero_page.put_u64(0x70, boot.rsdp);
    if let Some((at, len)) = place_initrd(&mut boot, initrd_max)? {
        zero_page.fill_initrd(at, len);
    }
    let cmdline = boot.layout.put_low("--append", &c_string(&boot.images.cmdline), 16, 0)?;
    zero_page.put_u32(0x228, low32(cmdline));
    let params = boot.layout.put_low("Linux zero page", &zero_page.0[..], PAGE_SIZE, 0)?;
    match start {
        Start::Long(rip) => entry::long_mode(&mut boot, rip)?,
        Start::Protected(rip) => entry::protected_mode(&mut boot, entry::LINUX, rip, 0)?,
    }
    boot.cpu.gpr[gpr::RSI] = params;
    Ok(())
}

/// Loads a plain ELF: an uncompressed `vmlinux`, or anything that needs no more than flat segments (and, if it is
/// 64-bit, identity-mapped memory).
pub(super) fn load_elf(elf: &Elf<'_>, mut boot: Boot<'_>) -> Result<(), LoadError> {
    elf.load(&mut boot.layout)?;
    let (start, initrd_max) = if elf.is_64 {
        if !entry::has_long_mode(boot.cpu.model) {
            return Err(LoadError::invalid("kernel image", "a 64-bit ELF on a CPU model without long mode"));
        }
        (Start::Long(elf.physical_entry()), INITRD_MAX_64)
    } else {
        (Start::Protected(elf.physical_entry()), INITRD_MAX_32)
    };
    super::linux::start(boot, ZeroPage::new(&[]), start, initrd_max)
}

/// Highest initrd address of an uncompressed kernel.
pub(super) fn initrd_max(elf: &Elf<'_>) -> u64 {
    if elf.is_64 { INITRD_MAX_64 } else { INITRD_MAX_32 }
}
