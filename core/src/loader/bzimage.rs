//! Linux bzImage. Owns the setup header's checks and where the protected-mode kernel goes.
//! Source: Documentation/arch/x86/boot.rst of Linux (boot protocol 2.x).

use super::bytes::{slice_at, u8_at, u16_at, u32_at, u64_at};
use super::linux::{self, Start};
use super::{Boot, LoadError, entry};

const WHAT: &str = "Linux bzImage";
/// Start of the setup header in the file and in the zero page.
pub(super) const HEADER: u64 = 0x1f1;
const SECTOR: u64 = 512;
/// Offset of the 64-bit entry in the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// loadflags: the kernel is loaded at 1 MiB or above (a zImage is not).
const LOADED_HIGH: u8 = 1;
/// xloadflags: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Where a kernel that states no address is loaded.
const DEFAULT_ADDRESS: u64 = 0x10_0000;
const DEFAULT_INITRD_MAX: u64 = 0x37ff_ffff;
const DEFAULT_CMDLINE_SIZE: u64 = 255;

/// The fields of the setup header a loader needs; absent ones (older protocol) hold the documented defaults.
#[derive(Debug)]
struct Setup<'a> {
    /// The setup header as it is copied to the zero page.
    header: &'a [u8],
    /// The protected-mode kernel.
    kernel: &'a [u8],
    code32_start: u64,
    initrd_max: u64,
    alignment: u64,
    relocatable: bool,
    has_entry_64: bool,
    cmdline_size: u64,
    pref_address: u64,
    /// Memory the kernel needs from its run-time start address on.
    init_size: u64,
}

/// Whether the file has a Linux setup header.
pub(super) fn is_bzimage(file: &[u8]) -> bool {
    u16_at(file, 0x1fe) == Some(0xaa55) && slice_at(file, 0x202, 4) == Some(b"HdrS")
}

impl<'a> Setup<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        if !is_bzimage(file) {
            return Err(LoadError::invalid(WHAT, "no setup header (\"HdrS\" at offset 0x202)"));
        }
        Self::fields(file).ok_or_else(|| LoadError::invalid(WHAT, "the file ends inside the setup header"))?
    }

    /// `None`: the file is too short.
    fn fields(file: &'a [u8]) -> Option<Result<Self, LoadError>> {
        let version = u16_at(file, 0x206)?;
        if version < 0x0200 || u8_at(file, 0x211)? & LOADED_HIGH == 0 {
            let why = format!("boot protocol {:#06x}, a zImage: only bzImages are supported", version);
            return Some(Err(LoadError::invalid(WHAT, why)));
        }
        let since = |v: u16| version >= v;
        let setup_sects = match u8_at(file, HEADER)? {
            0 => 4,
            n => u64::from(n),
        };
        let kernel =
            match Self::kernel(file, (setup_sects + 1) * SECTOR, u64::from(u32_at(file, 0x1f4)?) * 16) {
                Ok(kernel) => kernel,
                Err(e) => return Some(Err(e)),
            };
        let length = 0x202 + u64::from(u8_at(file, 0x201)?) - HEADER;
        let mut setup = Self {
            header: slice_at(file, HEADER, length)?,
            kernel,
            code32_start: u64::from(u32_at(file, 0x214)?),
            initrd_max: if since(0x203) { u64::from(u32_at(file, 0x22c)?) } else { DEFAULT_INITRD_MAX },
            alignment: if since(0x205) { u64::from(u32_at(file, 0x230)?) } else { 1 },
            relocatable: since(0x205) && u8_at(file, 0x234)? != 0,
            has_entry_64: since(0x20c) && u16_at(file, 0x236)? & XLF_KERNEL_64 != 0,
            cmdline_size: match u32_at(file, 0x238) {
                Some(size @ 1..) if since(0x206) => u64::from(size),
                _ => DEFAULT_CMDLINE_SIZE,
            },
            pref_address: if since(0x20a) { u64_at(file, 0x258)? } else { DEFAULT_ADDRESS },
            init_size: if since(0x20a) { u64::from(u32_at(file, 0x260)?) } else { 0 },
        };
        setup.init_size = setup.init_size.max(setup.kernel.len() as u64);
        if !setup.alignment.is_power_of_two() {
            setup.alignment = 1;
        }
        Some(Ok(setup))
    }

    /// The protected-mode kernel: `syssize` bytes at `start`. The last paragraph may be cut short.
    fn kernel(file: &'a [u8], start: u64, syssize: u64) -> Result<&'a [u8], LoadError> {
        let rest = slice_at(file, start, (file.len() as u64).saturating_sub(start)).unwrap_or_default();
        if rest.is_empty() || (rest.len() as u64).saturating_add(15) < syssize {
            let why = format!(
                "truncated: the header promises {} bytes, the file has {}",
                start + syssize,
                file.len()
            );
            return Err(LoadError::invalid(WHAT, why));
        }
        Ok(rest)
    }

    /// Address to load at, for entry in 64-bit or 32-bit mode.
    fn address(&self, boot: &mut Boot<'_>) -> Result<u64, LoadError> {
        if !self.relocatable {
            let at = if self.code32_start == 0 { DEFAULT_ADDRESS } else { self.code32_start };
            boot.layout.claim(WHAT, at, self.kernel.len() as u64)?;
            // It moves itself to pref_address: nothing else may be there.
            let end = at + self.kernel.len() as u64;
            let run_end = self.pref_address.saturating_add(self.init_size);
            if run_end > end {
                boot.layout.claim(WHAT, self.pref_address.max(end), run_end - self.pref_address.max(end))?;
            }
            return Ok(at);
        }
        match boot.layout.claim(WHAT, self.pref_address, self.init_size) {
            Ok(()) => Ok(self.pref_address),
            // Below the address it was linked for a relocatable kernel moves itself up again.
            Err(e) => {
                let above = self.pref_address;
                let place = boot.layout.place_low(WHAT, self.init_size, self.alignment, above, 1 << 32);
                place.map_err(|_| e)
            }
        }
    }
}

/// Loads a bzImage.
pub(super) fn load(file: &[u8], mut boot: Boot<'_>) -> Result<(), LoadError> {
    let setup = Setup::parse(file)?;
    if boot.images.cmdline.len() as u64 > setup.cmdline_size {
        let why = format!("{} bytes, this kernel accepts {}", boot.images.cmdline.len(), setup.cmdline_size);
        return Err(LoadError::invalid("--append", why));
    }
    let at = setup.address(&mut boot)?;
    boot.layout.write(at, setup.kernel)?;
    let start = if setup.has_entry_64 && entry::has_long_mode(boot.cpu.model) {
        Start::Long(at + ENTRY_64)
    } else {
        Start::Protected(at)
    };
    let mut zero_page = linux::ZeroPage::new(setup.header);
    zero_page.put_u32(0x214, at as u32);
    linux::start(boot, zero_page, start, setup.initrd_max)
}

/// The compressed kernel inside a bzImage (gzip, xz, zstd, ...: the first bytes tell), as its header describes it.
/// What it unpacks to is the uncompressed `vmlinux`.
///
/// # Errors
/// [`LoadError::Invalid`] if the file is no bzImage, is truncated, or predates boot protocol 2.08.
pub fn bzimage_payload(file: &[u8]) -> Result<&[u8], LoadError> {
    let setup = Setup::parse(file)?;
    if u16_at(file, 0x206) < Some(0x208) {
        return Err(LoadError::invalid(
            WHAT,
            "boot protocol older than 2.08: the payload's place is unknown",
        ));
    }
    let (offset, length) = (u32_at(file, 0x248), u32_at(file, 0x24c));
    let payload = offset.zip(length).and_then(|(o, l)| slice_at(setup.kernel, u64::from(o), u64::from(l)));
    payload
        .filter(|p| !p.is_empty())
        .ok_or_else(|| LoadError::invalid(WHAT, "the header's payload lies outside the file"))
}
