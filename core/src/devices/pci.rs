//! PCI configuration mechanism #1 and the configuration spaces of the chipset: 82441FX host bridge, PIIX3 ISA
//! bridge, PIIX4 power management. Sources: PCI 2.1, 3.7.4.1; Intel 290549 (440FX), 290550 (PIIX3), 290562 (PIIX4).

use crate::mem::Shadow;

/// Device and function numbers on bus 0, as `device << 3 | function`.
pub mod devfn {
    pub const HOST: u8 = 0;
    pub const ISA: u8 = 1 << 3;
    pub const POWER: u8 = 1 << 3 | 3;
}

/// Where direct boots and firmware alike put the power-management I/O block.
pub const PM_BASE: u16 = 0x600;

/// One function's configuration space with its writable bits.
#[derive(Clone, Debug)]
struct Function {
    devfn: u8,
    bytes: [u8; 256],
    /// Bits a write may change (configuration).
    mask: [u8; 256],
}

impl Function {
    fn new(devfn: u8, header: &[(u8, u32)], writable: &[(u8, u32)]) -> Self {
        let mut f = Self { devfn, bytes: [0; 256], mask: [0; 256] };
        for (at, v) in header {
            put(&mut f.bytes, *at, *v);
        }
        for (at, v) in writable {
            put(&mut f.mask, *at, *v);
        }
        f
    }
}

fn put(space: &mut [u8; 256], at: u8, v: u32) {
    for (i, b) in v.to_le_bytes().into_iter().enumerate() {
        space[usize::from(at & 0xfc) + i] = b;
    }
}

/// The configuration mechanism and the functions behind it.
#[derive(Clone, Debug)]
pub struct Pci {
    /// CONFIG_ADDRESS.
    address: u32,
    functions: Vec<Function>,
}

// The set of functions and their masks are configuration: only the bytes are state.
impl crate::state::State for Pci {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 1;
    fn save_fields(&self, w: &mut crate::state::Writer) {
        use crate::state::Field;
        let Self { address, functions } = self;
        address.put(w);
        functions.iter().for_each(|f| f.bytes.put(w));
    }
    fn load_fields(&mut self, r: &mut crate::state::Reader<'_>) -> Result<(), crate::state::StateError> {
        use crate::state::Field;
        let Self { address, functions } = self;
        *address = Field::get(r)?;
        for f in functions {
            f.bytes = Field::get(r)?;
        }
        Ok(())
    }
}

impl Default for Pci {
    fn default() -> Self {
        Self::new()
    }
}

/// 440FX: class 0600. The board acts on the PAM registers; SMRAM is only stored.
fn host_bridge() -> Function {
    Function::new(
        devfn::HOST,
        &[(0x00, 0x1237_8086), (0x04, 0x0000_0006), (0x08, 0x0600_0002), (0x70, 0x0002_0000)],
        &[
            (0x0c, 0xff00),
            (0x50, u32::MAX),
            (0x54, u32::MAX),
            (0x58, 0x3333_3300),
            (0x5c, 0x3333_3333),
            (0x60, u32::MAX),
            (0x64, u32::MAX),
            (0x68, u32::MAX),
            (0x70, 0x007f_0000),
        ],
    )
}

/// PIIX3: class 0601, multi-function. PIRQ routing registers 0x60-0x63 start disabled.
fn isa_bridge() -> Function {
    Function::new(
        devfn::ISA,
        &[
            (0x00, 0x7000_8086),
            (0x04, 0x0200_0007),
            (0x08, 0x0601_0000),
            (0x0c, 0x0080_0000),
            (0x4c, 0x0003_004d),
            (0x60, 0x8080_8080),
        ],
        &[(0x4c, 0xffff_ffff), (0x60, 0x8f8f_8f8f), (0x68, 0xff), (0x80, 0xff), (0x80 + 0x20, u32::MAX)],
    )
}

/// DEVACTB: SMIs by the APM port are on. The board has no system-management mode, and firmware takes this to mean that
/// it is set up already.
const APMC_ENABLE: u32 = 1 << 25;

/// PIIX4 function 3: class 0680, interrupt pin A, PM block enabled at [`PM_BASE`].
fn power_management() -> Function {
    Function::new(
        devfn::POWER,
        &[
            (0x00, 0x7113_8086),
            (0x04, 0x0280_0001),
            (0x08, 0x0680_0003),
            (0x3c, 0x0000_0109),
            (0x40, PM_BASE as u32 | 1),
            (0x58, APMC_ENABLE),
            (0x80, 1),
            (0x90, 1),
        ],
        &[
            (0x04, 0x0001),
            (0x3c, 0xff),
            (0x40, 0xffc0),
            (0x58, u32::MAX),
            (0x80, 0x01),
            (0x90, 0xfff0),
            (0xd0, 0x00ff_0000),
        ],
    )
}

impl Pci {
    pub fn new() -> Self {
        Self { address: 0, functions: vec![host_bridge(), isa_bridge(), power_management()] }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// CONFIG_ADDRESS (port 0xCF8, 32-bit accesses only).
    pub fn read_address(&self) -> u32 {
        self.address
    }
    pub fn write_address(&mut self, v: u32) {
        self.address = v & 0x80ff_fffc;
    }

    fn selected(&mut self) -> Option<(&mut Function, u8)> {
        if self.address >> 31 == 0 || self.address >> 16 & 0xff != 0 {
            return None;
        }
        let (devfn, register) = ((self.address >> 8) as u8, self.address as u8 & 0xfc);
        self.functions.iter_mut().find(|f| f.devfn == devfn).map(|f| (f, register))
    }

    /// Reads a byte of CONFIG_DATA (`n` = port - 0xCFC); absent functions read as ones.
    pub fn read_data(&mut self, n: u8) -> u8 {
        self.selected().map_or(0xff, |(f, r)| f.bytes[usize::from(r | n & 3)])
    }

    /// Writes a byte of CONFIG_DATA.
    pub fn write_data(&mut self, n: u8, v: u8) {
        if let Some((f, r)) = self.selected() {
            let at = usize::from(r | n & 3);
            f.bytes[at] = f.bytes[at] & !f.mask[at] | v & f.mask[at];
        }
    }

    fn word(&self, devfn: u8, at: u8) -> u16 {
        self.functions
            .iter()
            .find(|f| f.devfn == devfn)
            .map_or(0, |f| u16::from_le_bytes([f.bytes[usize::from(at)], f.bytes[usize::from(at | 1)]]))
    }

    /// The PAM registers (0x59-0x5F): two bits for each range of [`SHADOW`](crate::mem::map::SHADOW).
    pub fn shadow(&self) -> Shadow {
        let bits = |at: u8, shift: u8| (self.word(devfn::HOST, at & !1) >> (8 * (at & 1) + shift)) as u8 & 3;
        let mut out = Shadow::default();
        out[0] = bits(0x59, 4);
        for (n, pair) in out[1..].chunks_mut(2).enumerate() {
            let at = 0x5a + n as u8;
            pair.iter_mut().zip([0, 4]).for_each(|(p, shift)| *p = bits(at, shift));
        }
        out
    }

    /// Base of the power-management I/O block, if it is decoded.
    pub fn pm_base(&self) -> Option<u16> {
        let enabled = self.word(devfn::POWER, 0x80) & 1 != 0;
        let base = self.word(devfn::POWER, 0x40) & 0xffc0;
        (enabled && base != 0).then_some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(p: &mut Pci, devfn: u8, at: u8) -> u32 {
        p.write_address(0x8000_0000 | u32::from(devfn) << 8 | u32::from(at));
        u32::from_le_bytes([0, 1, 2, 3].map(|n| p.read_data(n)))
    }

    #[test]
    fn pci_chipset_identities() {
        let mut p = Pci::new();
        assert_eq!(read(&mut p, devfn::HOST, 0), 0x1237_8086);
        assert_eq!(read(&mut p, devfn::ISA, 0), 0x7000_8086);
        assert_eq!(read(&mut p, devfn::POWER, 0), 0x7113_8086);
        assert_eq!(read(&mut p, devfn::ISA, 0x0c) >> 16 & 0x80, 0x80, "multi-function");
        assert_eq!(read(&mut p, devfn::HOST, 8) >> 16, 0x0600);
        assert_eq!(read(&mut p, devfn::ISA, 8) >> 16, 0x0601);
    }

    #[test]
    fn pci_absent_function_reads_ones() {
        let mut p = Pci::new();
        assert_eq!(read(&mut p, 5 << 3, 0), u32::MAX);
        p.write_address(0x8001_0000);
        assert_eq!(p.read_data(0), 0xff, "another bus");
        p.write_address(0x0000_0000);
        assert_eq!(p.read_data(0), 0xff, "mechanism off");
    }

    #[test]
    fn pci_read_only_bits_ignore_writes() {
        let mut p = Pci::new();
        read(&mut p, devfn::HOST, 0);
        (0..4).for_each(|n| p.write_data(n, 0));
        assert_eq!(read(&mut p, devfn::HOST, 0), 0x1237_8086);
        read(&mut p, devfn::HOST, 0x58);
        p.write_data(1, 0xff);
        assert_eq!(read(&mut p, devfn::HOST, 0x58), 0x3300, "PAM0");
    }

    #[test]
    fn pci_address_reserved_bits_read_zero() {
        let mut p = Pci::new();
        p.write_address(u32::MAX);
        assert_eq!(p.read_address(), 0x80ff_fffc);
    }

    #[test]
    fn pci_power_management_block_moves() {
        let mut p = Pci::new();
        assert_eq!(p.pm_base(), Some(PM_BASE));
        read(&mut p, devfn::POWER, 0x40);
        p.write_data(1, 0xb0);
        assert_eq!(p.pm_base(), Some(0xb000));
        read(&mut p, devfn::POWER, 0x80);
        p.write_data(0, 0);
        assert_eq!(p.pm_base(), None);
    }

    #[test]
    fn pci_pam_registers_give_two_bits_a_range() {
        let mut p = Pci::new();
        assert_eq!(p.shadow(), [0; 13]);
        read(&mut p, devfn::HOST, 0x58);
        p.write_data(1, 0x30);
        p.write_data(2, 0x12);
        read(&mut p, devfn::HOST, 0x5c);
        p.write_data(3, 0x20);
        assert_eq!(p.shadow(), [3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
}
