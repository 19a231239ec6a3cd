//! Firmware tables of direct boots: ACPI and the MP configuration table, describing exactly the board of `board`.
//! Sources: ACPI 6.4, chapter 5; Intel MultiProcessor Specification 1.4, chapter 4.
//!
//! All lie in 0xE0000-0xFFFFF, where nothing loads images; the root pointers at 0xF0000, the only place every guest
//! searches. The BIOS data area says where conventional memory ends, since guests search below that too.

use super::aml;
use super::board::IOAPIC_BASE;
use super::config::MachineConfig;
use crate::addr::Gpa;
use crate::devices::{acpi_pm, pci};
use crate::mem::Memory;
use crate::mem::map::LOW_RAM_END;

/// The ACPI root pointer; the tables follow it.
const RSDP: u64 = 0xf_0000;
const TABLES: u64 = 0xf_0040;
/// The MP floating pointer (between the RSDP and the tables), and its configuration table.
const MP_POINTER: u64 = 0xf_0030;
const MP_TABLE: u64 = 0xe_0000;
/// The extended BIOS data area: the last KiB of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
const LAPIC_BASE: u32 = 0xfee0_0000;
const OEM: &[u8; 6] = b"RETROV";
const SCI: u8 = 9;
/// Length of a table header (5.2.6).
const HEADER: usize = 36;

/// Writes the tables of a direct boot; returns the address of the RSDP. Memory from [`EBDA`] to 0xA0000 is taken.
pub fn install(mem: &mut Memory, config: &MachineConfig) -> u64 {
    install_bios_data(mem);
    install_acpi(mem, config);
    install_mp(mem, config);
    RSDP
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |s, b| s.wrapping_sub(*b))
}

/// A table: standard header and body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut t = signature.to_vec();
    t.extend(((HEADER + body.len()) as u32).to_le_bytes());
    t.extend([revision, 0]);
    t.extend(OEM);
    t.extend(b"RETROPC1");
    t.extend(1u32.to_le_bytes());
    t.extend(b"RTRV");
    t.extend(1u32.to_le_bytes());
    t.extend(body);
    t[9] = checksum(&t);
    t
}

/// Places tables one after the other.
struct Placer<'a> {
    mem: &'a mut Memory,
    at: u64,
}

impl Placer<'_> {
    fn place(&mut self, bytes: &[u8]) -> u32 {
        let at = self.at;
        self.mem.write_phys(Gpa(at), bytes);
        // FACS asks for 64-byte alignment (5.2.10); give it to all.
        self.at = (at + bytes.len() as u64).next_multiple_of(64);
        at as u32
    }
}

/// What firmware leaves in the BIOS data area: COM1's port, the EBDA's segment, conventional memory in KiB.
fn install_bios_data(mem: &mut Memory) {
    mem.write_phys(Gpa(0x400), &0x3f8u16.to_le_bytes());
    mem.write_phys(Gpa(0x40e), &((EBDA >> 4) as u16).to_le_bytes());
    mem.write_phys(Gpa(0x413), &((EBDA >> 10) as u16).to_le_bytes());
    // The EBDA starts with its size in KiB.
    mem.write_phys(Gpa(EBDA), &[1]);
}

fn install_acpi(mem: &mut Memory, config: &MachineConfig) {
    let mut p = Placer { mem, at: TABLES };
    let facs = p.place(&facs());
    let dsdt = p.place(&table(b"DSDT", 1, &dsdt(config)));
    let fadt = p.place(&table(b"FACP", 3, &fadt(facs, dsdt)));
    let madt = p.place(&table(b"APIC", 3, &madt(config.vcpus.max(1))));
    let entries = [fadt, madt];
    let rsdt: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    let xsdt: Vec<u8> = entries.iter().flat_map(|e| u64::from(*e).to_le_bytes()).collect();
    let rsdt = p.place(&table(b"RSDT", 1, &rsdt));
    let xsdt = p.place(&table(b"XSDT", 1, &xsdt));
    p.mem.write_phys(Gpa(RSDP), &rsdp(rsdt, xsdt));
}

/// Root pointer, revision 2 (5.2.5.3).
fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut r = b"RSD PTR \0".to_vec();
    r.extend(OEM);
    r.push(2);
    r.extend(rsdt.to_le_bytes());
    r.extend(36u32.to_le_bytes());
    r.extend(u64::from(xsdt).to_le_bytes());
    r.extend([0; 4]);
    r[8] = checksum(&r[..20]);
    r[32] = checksum(&r);
    r
}

fn facs() -> Vec<u8> {
    let mut f = vec![0; 64];
    f[..4].copy_from_slice(b"FACS");
    f[4] = 64;
    f[32] = 1;
    f
}

/// A generic address structure (5.2.3.2) in I/O space.
fn io_address(bits: u8, port: u16) -> [u8; 12] {
    let mut g = [0; 12];
    g[0] = 1;
    g[1] = bits;
    g[3] = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    g[4..6].copy_from_slice(&port.to_le_bytes());
    g
}

/// Fixed ACPI description table, revision 3, without its header (5.2.9). Offsets are the specification's.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let pm = pci::PM_BASE;
    let mut f = vec![0; 244];
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    let port = |n: u16| u32::from(n).to_le_bytes();
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    // Preferred profile: desktop.
    put(45, &[1]);
    put(46, &u16::from(SCI).to_le_bytes());
    put(48, &0xb2u32.to_le_bytes());
    put(52, &[acpi_pm::ACPI_ENABLE, acpi_pm::ACPI_DISABLE]);
    put(56, &port(pm));
    put(64, &port(pm + 4));
    put(76, &port(pm + 8));
    put(80, &port(pm + 12));
    // Lengths of PM1 events, PM1 control, PM2 control, PM timer, GPE0, GPE1; GPE1 base.
    put(88, &[4, 2, 0, 4, 4, 0, 0]);
    // C2 and C3 latencies: not supported.
    put(96, &0x0fffu16.to_le_bytes());
    put(98, &0x0fffu16.to_le_bytes());
    // RTC century register; boot flags: legacy devices and 8042 present.
    put(108, &[0x32]);
    put(109, &3u16.to_le_bytes());
    // WBINVD works, C1 on all processors, fixed power button, control-method sleep button (none), 32-bit reset
    // register supported; the PM timer has 24 bits, the RTC does not wake.
    let flags: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10;
    put(112, &flags.to_le_bytes());
    put(116, &io_address(8, 0xcf9));
    put(128, &[0x06]);
    put(132, &u64::from(facs).to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &io_address(32, pm));
    put(172, &io_address(16, pm + 4));
    put(208, &io_address(32, pm + 8));
    put(220, &io_address(32, pm + 12));
    f.split_off(HEADER)
}

/// Multiple APIC description table (5.2.12): local APICs, the I/O APIC, IRQ0 on GSI 2, level SCI, LINT1 as NMI.
fn madt(vcpus: u8) -> Vec<u8> {
    let mut m = LAPIC_BASE.to_le_bytes().to_vec();
    // PC-AT compatible: an 8259 pair exists too.
    m.extend(1u32.to_le_bytes());
    for n in 0..vcpus {
        m.extend([0, 8, n, n, 1, 0, 0, 0]);
    }
    m.extend([1, 12, 0, 0]);
    m.extend((IOAPIC_BASE as u32).to_le_bytes());
    m.extend(0u32.to_le_bytes());
    let mut redirect = |irq: u8, gsi: u8, flags: u8| m.extend([2, 10, 0, irq, gsi, 0, 0, 0, flags, 0]);
    redirect(0, 2, 0x00);
    // Active high, level-triggered.
    redirect(SCI, SCI, 0x0d);
    // LINT1 of all processors is NMI.
    m.extend([4, 6, 0xff, 0, 0, 1]);
    m
}

/// The DSDT's body: sleep states, processors, the PCI root, and the legacy devices with fixed resources.
fn dsdt(config: &MachineConfig) -> Vec<u8> {
    let s5 = u32::from(acpi_pm::S5);
    let sleep = aml::name("\\_S5", aml::package(&[aml::int(s5), aml::int(s5), aml::int(0), aml::int(0)]));
    let mut root = vec![
        aml::name("_HID", aml::eisa_id("PNP0A03")),
        aml::name("_UID", aml::int(0)),
        aml::name("_CRS", root_resources()),
        aml::name("_PRT", routing()),
    ];
    root.push(isa_devices());
    let mut system = vec![aml::device("PCI0", &root)];
    for n in 0..config.vcpus.max(1) {
        system.push(aml::device(&format!("C{n:03}"), &processor(n)));
    }
    [sleep, aml::scope("\\_SB", &system)].concat()
}

fn processor(n: u8) -> Vec<Vec<u8>> {
    vec![
        // A string object: "ACPI0007".
        aml::name("_HID", [&[0x0d][..], b"ACPI0007\0"].concat()),
        aml::name("_UID", aml::int(u32::from(n))),
    ]
}

fn root_resources() -> Vec<u8> {
    aml::resources(&[
        aml::word_space(2, 0, 0xff),
        aml::io(0xcf8, 8),
        aml::word_space(1, 0, 0x0cf7),
        aml::word_space(1, 0x0d00, 0xffff),
        aml::dword_memory(0xa_0000, 0xb_ffff, true),
        aml::dword_memory(LOW_RAM_END as u32, 0xfebf_ffff, false),
    ])
}

/// INTx of each slot to GSI 16-19, swizzled.
fn routing() -> Vec<u8> {
    let mut entries = Vec::new();
    for slot in 0..32u32 {
        for pin in 0..4 {
            let address = aml::int(slot << 16 | 0xffff);
            let gsi = aml::int(16 + (slot + pin) % 4);
            entries.push(aml::package(&[address, aml::int(pin), aml::int(0), gsi]));
        }
    }
    aml::package(&entries)
}

/// The ISA bridge and what is behind it.
fn isa_devices() -> Vec<u8> {
    let fixed = |n: &str, id: &str, resources: &[Vec<u8>]| {
        aml::device(n, &[aml::name("_HID", aml::eisa_id(id)), aml::name("_CRS", aml::resources(resources))])
    };
    let com1 = aml::device(
        "COM1",
        &[
            aml::name("_HID", aml::eisa_id("PNP0501")),
            aml::name("_UID", aml::int(1)),
            aml::name("_CRS", aml::resources(&[aml::io(0x3f8, 8), aml::irq(4)])),
        ],
    );
    aml::device(
        "ISA",
        &[
            aml::name("_ADR", aml::int(0x0001_0000)),
            com1,
            fixed("KBD", "PNP0303", &[aml::io(0x60, 1), aml::io(0x64, 1), aml::irq(1)]),
            fixed("MOU", "PNP0F13", &[aml::irq(12)]),
            fixed("RTC", "PNP0B00", &[aml::io(0x70, 2), aml::irq(8)]),
        ],
    )
}

/// MP floating pointer and configuration table (4.1 to 4.3), one processor or more.
fn install_mp(mem: &mut Memory, config: &MachineConfig) {
    let vcpus = config.vcpus.max(1);
    let ioapic_id = 0u8;
    let (entries, count) = mp_entries(vcpus, config.cpu.signature(), ioapic_id);
    let mut t = b"PCMP".to_vec();
    t.extend(((44 + entries.len()) as u16).to_le_bytes());
    t.extend([4, 0]);
    t.extend(b"RETROVIS");
    t.extend(b"PC          ");
    t.extend([0; 6]);
    t.extend(count.to_le_bytes());
    t.extend(LAPIC_BASE.to_le_bytes());
    t.extend([0; 4]);
    t.extend(entries);
    t[7] = checksum(&t);
    mem.write_phys(Gpa(MP_TABLE), &t);

    let mut p = b"_MP_".to_vec();
    p.extend((MP_TABLE as u32).to_le_bytes());
    p.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    p[10] = checksum(&p);
    mem.write_phys(Gpa(MP_POINTER), &p);
}

/// Entries of the MP table in order of their type, and their number.
fn mp_entries(vcpus: u8, signature: u32, ioapic: u8) -> (Vec<u8>, u16) {
    let mut e = Vec::new();
    let mut count = 0u16;
    let mut add = |bytes: &[u8]| {
        e.extend_from_slice(bytes);
        count += 1;
    };
    for n in 0..vcpus {
        let flags = 1 | if n == 0 { 2 } else { 0 };
        let mut processor = vec![0, n, 0x14, flags];
        processor.extend(signature.to_le_bytes());
        // Feature flags: FPU, CX8 and APIC.
        processor.extend(0x0000_0301u32.to_le_bytes());
        processor.extend([0; 8]);
        add(&processor);
    }
    add(b"\x01\x00PCI   ");
    add(b"\x01\x01ISA   ");
    let base = (IOAPIC_BASE as u32).to_le_bytes();
    add(&[2, ioapic, 0x11, 1, base[0], base[1], base[2], base[3]]);
    // ISA interrupts: IRQ0 on pin 2, the rest on their own; IRQ2 is the cascade. The SCI is level-triggered.
    for irq in (0..16u8).filter(|i| *i != 2) {
        let pin = if irq == 0 { 2 } else { irq };
        let flags = if irq == SCI { 0x0d } else { 0 };
        add(&[3, 0, flags, 0, 1, irq, ioapic, pin]);
    }
    // PCI INTx of the slots in use would follow; the power-management function uses the SCI.
    // Local interrupts: LINT0 is ExtINT, LINT1 NMI, of all processors.
    add(&[4, 3, 0, 0, 1, 0, 0xff, 0]);
    add(&[4, 1, 0, 0, 1, 0, 0xff, 1]);
    (e, count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn installed(vcpus: u8) -> Memory {
        let config = MachineConfig { vcpus, memory: 64 << 20, ..MachineConfig::default() };
        let mut mem = Memory::new(config.memory, 0).unwrap();
        assert_eq!(install(&mut mem, &config), RSDP);
        mem
    }

    fn bytes(mem: &Memory, at: u64, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        assert!(mem.read_phys(Gpa(at), &mut b));
        b
    }

    fn word(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
    }

    /// The table at `at`, its checksum verified.
    fn read_table(mem: &Memory, at: u64) -> Vec<u8> {
        let len = word(&bytes(mem, at, 8), 4) as usize;
        let t = bytes(mem, at, len);
        assert_eq!(checksum(&t), 0, "checksum of {:?}", std::str::from_utf8(&t[..4]));
        t
    }

    fn acpi(mem: &Memory) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let rsdp = bytes(mem, RSDP, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((checksum(&rsdp[..20]), checksum(&rsdp)), (0, 0));
        let xsdt = read_table(mem, word(&rsdp, 24).into());
        let rsdt = read_table(mem, word(&rsdp, 16).into());
        assert_eq!((word(&rsdt, 36), word(&rsdt, 40)), (word(&xsdt, 36), word(&xsdt, 44)));
        let fadt = read_table(mem, word(&xsdt, 36).into());
        let madt = read_table(mem, word(&xsdt, 44).into());
        let dsdt = read_table(mem, word(&fadt, 40).into());
        (fadt, madt, dsdt)
    }

    #[test]
    fn acpi_tables_are_linked_and_checksummed() {
        let (fadt, madt, dsdt) = acpi(&installed(1));
        assert_eq!((&fadt[..4], &madt[..4], &dsdt[..4]), (&b"FACP"[..], &b"APIC"[..], &b"DSDT"[..]));
        assert_eq!((word(&fadt, 56), word(&fadt, 64), word(&fadt, 76)), (0x600, 0x604, 0x608));
        assert_eq!(fadt.len(), 244);
    }

    #[test]
    fn facs_is_aligned_to_64_bytes() {
        let mem = installed(1);
        let facs = word(&acpi(&mem).0, 36);
        assert_eq!(facs % 64, 0);
        assert_eq!(bytes(&mem, facs.into(), 4), b"FACS");
    }

    #[test]
    fn madt_lists_every_processor() {
        let mem = installed(4);
        let madt = acpi(&mem).1;
        let (mut at, mut ids) = (44, Vec::new());
        while at < madt.len() {
            if madt[at] == 0 {
                ids.push(madt[at + 3]);
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, [0, 1, 2, 3]);
    }

    #[test]
    fn mp_pointer_lies_where_guests_search() {
        for vcpus in [1, 3] {
            let mem = installed(vcpus);
            let area = bytes(&mem, 0xf_0000, 0x1_0000);
            let at = area.chunks(16).position(|c| c.starts_with(b"_MP_")).unwrap() * 16;
            assert_eq!(checksum(&area[at..at + 16]), 0);
            let table = word(&area, at + 4).into();
            let len = u16::from_le_bytes(bytes(&mem, table + 4, 2).try_into().unwrap());
            let t = bytes(&mem, table, len.into());
            assert_eq!((&t[..4], checksum(&t)), (&b"PCMP"[..], 0));
            let count = u16::from_le_bytes([t[34], t[35]]);
            let (mut at, mut n, mut cpus) = (44, 0, 0);
            while at < t.len() {
                cpus += u8::from(t[at] == 0);
                at += if t[at] == 0 { 20 } else { 8 };
                n += 1;
            }
            assert_eq!((n, cpus), (count, vcpus));
        }
    }

    #[test]
    fn tables_leave_conventional_memory_alone() {
        let mem = installed(255);
        assert!(bytes(&mem, 0x500, (EBDA - 0x500) as usize).iter().all(|b| *b == 0));
        assert!(bytes(&mem, 0x10_0000, 0x1_0000).iter().all(|b| *b == 0));
    }
}
