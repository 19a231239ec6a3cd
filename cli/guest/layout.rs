//! Where everything lies. Owns the address-space layout, the read-only strings, the initialised tables and the
//! zero-initialised variables, each with its symbol.

use super::Result;
use super::image::{Image, Section, Symbol};

/// The kernel half: guest-physical address 0 appears here in every address space.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Guest-physical address of the image.
pub const LOAD: u64 = 0x10_0000;

/// Guest-physical addresses of the sections, and the virtual ones of user space.
pub mod at {
    pub const TEXT: u64 = 0x10_1000;
    pub const USER: u64 = 0x10_3000;
    pub const RODATA: u64 = 0x10_4000;
    pub const DATA: u64 = 0x10_5000;
    pub const BSS: u64 = 0x10_6000;
    /// User code, shared by all tasks, read-only.
    pub const USER_VIRTUAL: u64 = 0x40_0000;
    /// Each task's private data page.
    pub const USER_DATA: u64 = 0x41_0000;
    /// Top of each task's private stack page.
    pub const USER_STACK_TOP: u64 = 0x42_0000;
}

/// Selectors of the kernel's GDT.
pub mod sel {
    pub const KERNEL_CODE: u32 = 0x08;
    pub const KERNEL_DATA: u32 = 0x10;
    pub const USER_DATA: u32 = 0x18 | 3;
    pub const USER_CODE: u32 = 0x20 | 3;
    pub const TSS: u32 = 0x28;
}

pub const PAGE: u64 = 4096;
pub const TASKS: u64 = 3;
/// Entries of the milestone ring.
pub const KLOG_ENTRIES: u64 = 16;
/// Ticks between two calls of the housekeeping hook.
pub const HOUSEKEEPING_TICKS: u32 = 40;

/// Offsets in a task's entry of the task table.
pub mod task {
    pub const NEXT: u64 = 0;
    pub const KSP: u64 = 8;
    pub const CR3: u64 = 16;
    pub const KSTACK_TOP: u64 = 24;
    pub const NAME: u64 = 32;
    pub const REPORTS: u64 = 40;
    pub const SIZE: u64 = 64;
}

/// Pages of one address space, in this order: four levels of tables, the data page, the stack page.
pub mod space {
    pub const PML4: u64 = 0;
    pub const PDPT: u64 = 1;
    pub const PD: u64 = 2;
    pub const PT: u64 = 3;
    pub const DATA: u64 = 4;
    pub const STACK: u64 = 5;
    pub const PAGES: u64 = 6;
}

/// Virtual addresses of the kernel's variables and tables.
pub struct Vars {
    /// Physical address of the multiboot information.
    pub boot_info: u64,
    pub gdtr: u64,
    /// The same as a 32-bit descriptor with physical base, for the boot code.
    pub gdtr_32: u64,
    pub tss: u64,
    pub idtr: u64,
    pub idt: u64,
    pub kernel_pml4: u64,
    pub low_pdpt: u64,
    pub kernel_pdpt: u64,
    pub kernel_pd: u64,
    pub boot_stack_top: u64,
    pub spaces: u64,
    pub kernel_stacks: u64,
    pub tasks: u64,
    pub current: u64,
    pub ticks: u64,
    pub next_housekeeping: u64,
    pub klog_next: u64,
    pub klog_ring: u64,
    pub housekeeping_hook: u64,
}

impl Vars {
    pub fn new(data: &mut Data) -> Self {
        let tss_at = KERNEL_BASE + at::DATA + 0x100;
        let gdt = data.table("gdt", &gdt(tss_at));
        let gdtr = data.table("gdtr", &descriptor(63, &gdt.to_le_bytes()));
        let gdtr_32 = data.table("gdtr_32", &descriptor(63, &phys32(gdt).to_le_bytes()));
        data.pad_to(0x100);
        let tss = data.table("tss", &tss());
        assert_eq!(tss, tss_at);
        let boot_stack = data.bss("boot_stack", PAGE, PAGE);
        let idt = data.bss("idt", PAGE, PAGE);
        let idtr = data.table("idtr", &descriptor(4095, &idt.to_le_bytes()));
        let klog_ring = data.bss("klog_ring", KLOG_ENTRIES * 8, PAGE);
        Self {
            gdtr,
            gdtr_32,
            tss,
            idtr,
            idt,
            klog_ring,
            // Right behind the ring: this is what the seventeenth record hits.
            housekeeping_hook: data.bss("housekeeping_hook", 8, 8),
            klog_next: data.bss("klog_next", 8, 8),
            kernel_pml4: data.bss("kernel_pml4", PAGE, PAGE),
            low_pdpt: data.bss("low_pdpt", PAGE, PAGE),
            kernel_pdpt: data.bss("kernel_pdpt", PAGE, PAGE),
            kernel_pd: data.bss("kernel_pd", PAGE, PAGE),
            boot_stack_top: boot_stack + PAGE,
            spaces: data.bss("address_spaces", TASKS * space::PAGES * PAGE, PAGE),
            kernel_stacks: data.bss("kernel_stacks", TASKS * PAGE, PAGE),
            tasks: data.bss("tasks", TASKS * task::SIZE, 64),
            current: data.bss("current", 8, 8),
            ticks: data.bss("ticks", 8, 8),
            next_housekeeping: data.bss("next_housekeeping", 8, 8),
            boot_info: data.bss("boot_info", 8, 8),
        }
    }
}

/// Guest-physical address of a kernel virtual one, as the 32-bit boot code uses it.
pub fn phys32(virt: u64) -> u32 {
    (virt - KERNEL_BASE) as u32
}

/// A pseudo-descriptor for LGDT and LIDT.
fn descriptor(limit: u16, base: &[u8]) -> Vec<u8> {
    [&limit.to_le_bytes(), base].concat()
}

/// Null, kernel code and data, user data and code, and the 16-byte TSS descriptor.
fn gdt(tss: u64) -> Vec<u8> {
    let low = (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56 | 0x89 << 40 | 103;
    let entries = [
        0,
        0x00af_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00cf_f200_0000_ffff,
        0x00af_fa00_0000_ffff,
        low,
        tss >> 32,
        0,
    ];
    entries.iter().flat_map(|e: &u64| e.to_le_bytes()).collect()
}

/// A TSS without I/O bitmap; the scheduler fills in RSP0.
fn tss() -> Vec<u8> {
    let mut t = vec![0; 104];
    t[102] = 104;
    t
}

/// The data sections being laid out.
pub struct Data {
    strings: Vec<u8>,
    tables: Vec<u8>,
    /// End of the bss so far, physical.
    bss: u64,
    rodata_symbols: Vec<Symbol>,
    data_symbols: Vec<Symbol>,
    bss_symbols: Vec<Symbol>,
}

impl Data {
    pub fn new() -> Self {
        Self {
            strings: Vec::new(),
            tables: Vec::new(),
            bss: at::BSS,
            rodata_symbols: Vec::new(),
            data_symbols: Vec::new(),
            bss_symbols: Vec::new(),
        }
    }

    /// Adds a zero-terminated string; its virtual address.
    pub fn string(&mut self, text: &str) -> u64 {
        let addr = KERNEL_BASE + at::RODATA + self.strings.len() as u64;
        self.strings.extend(text.bytes().chain([0]));
        let name = format!("str_{}", self.rodata_symbols.len());
        self.rodata_symbols.push(Symbol::object(&name, addr, text.len() as u64 + 1));
        addr
    }

    /// Adds initialised data, 16-byte aligned.
    pub fn table(&mut self, name: &str, bytes: &[u8]) -> u64 {
        self.tables.resize(self.tables.len().next_multiple_of(16), 0);
        let addr = KERNEL_BASE + at::DATA + self.tables.len() as u64;
        self.data_symbols.push(Symbol::object(name, addr, bytes.len() as u64));
        self.tables.extend(bytes);
        addr
    }

    /// Continues the initialised data at this offset.
    fn pad_to(&mut self, offset: usize) {
        self.tables.resize(offset, 0);
    }

    /// Reserves zero-initialised memory.
    pub fn bss(&mut self, name: &str, size: u64, align: u64) -> u64 {
        let start = self.bss.next_multiple_of(align);
        self.bss = start + size;
        self.bss_symbols.push(Symbol::object(name, KERNEL_BASE + start, size));
        KERNEL_BASE + start
    }

    /// End of the bss, physical.
    pub fn bss_end(&self) -> u64 {
        self.bss
    }

    /// Adds the three data sections to the image.
    pub fn add_to(self, image: &mut Image) -> Result<()> {
        let rodata = Section::rodata(".rodata", KERNEL_BASE + at::RODATA, at::RODATA, at::DATA - at::RODATA);
        image.bytes(rodata, &self.strings, self.rodata_symbols)?;
        let data = Section::data(".data", KERNEL_BASE + at::DATA, at::DATA, at::BSS - at::DATA);
        image.bytes(data, &self.tables, self.data_symbols)?;
        image.bss(".bss", KERNEL_BASE + at::BSS, at::BSS, self.bss - at::BSS, self.bss_symbols);
        Ok(())
    }
}
