//! "rearview", the guest of `retrovisor demo`: a small kernel with one bug.
//!
//! It boots by multiboot in 32-bit mode, switches to long mode, and runs three ring-3 tasks, each in an address
//! space of its own, under a round-robin scheduler driven by the PIT at 1 kHz. Tasks report milestones by INT 0x80.
//! The kernel notes each milestone, and each step of its own start, in a ring buffer (`klog`). Every 40 ms it calls a
//! housekeeping function through a pointer that lies right behind that ring.
//!
//! **The bug:** `klog_put` wraps its index one entry too late. Only the seventeenth record shows it: that one lands
//! on the pointer. Nothing notices until housekeeping is due, more than twenty million instructions later.
//!
//! The source is Rust that drives an assembler; each file emits one part: `boot` the way to long mode, `traps` the
//! interrupt entries and the panic screen, `sched` tasks and address spaces, `console` serial output, `klog` the
//! ring, `tasks` the user programs. `layout` says where things lie, `image` is the assembler with named labels and
//! writes the ELF file.

mod boot;
mod console;
mod image;
mod klog;
mod layout;
mod sched;
mod tasks;
mod traps;

use image::{Code, Image, Section};
use layout::{Data, KERNEL_BASE, LOAD, Vars, at};

/// Everything that goes wrong here is a mistake in the guest's source, found at build time.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Assembles the kernel and returns it as an ELF64 file with a symbol table.
pub fn build() -> Result<Vec<u8>> {
    let mut data = Data::new();
    let vars = Vars::new(&mut data);
    let mut user = Code::new(64, at::USER_VIRTUAL)?;
    tasks::emit(&mut user)?;
    let user = user.finish()?;

    let mut text = Code::new(64, KERNEL_BASE + at::TEXT)?;
    boot::emit_64(&mut text, &vars, &mut data)?;
    console::emit(&mut text, &vars)?;
    klog::emit(&mut text, &vars)?;
    sched::emit(&mut text, &vars, &mut data, &user)?;
    traps::emit(&mut text, &vars, &mut data)?;
    let text = text.finish()?;
    let boot = boot::emit_32(&vars, data.bss_end())?;

    let mut image = Image::new(LOAD, u64::from(boot.start()));
    image.section(Section::code(".boot", LOAD, LOAD, at::TEXT - LOAD), &boot)?;
    image.section(Section::code(".text", KERNEL_BASE + at::TEXT, at::TEXT, at::USER - at::TEXT), &text)?;
    image.section(Section::code(".user", at::USER_VIRTUAL, at::USER, at::RODATA - at::USER), &user)?;
    data.add_to(&mut image)?;
    Ok(image.write())
}
