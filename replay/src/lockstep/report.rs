//! What is said about a difference between two machines in step: where, which instructions, both register files,
//! the bytes of memory, the devices, the translated code.

use super::registers;
use retrovisor_core::disasm::disassemble;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::mem::Memory;
use retrovisor_core::mmu::Paging;
use retrovisor_core::mmu::walk::walk;
use retrovisor_core::translate::mode::ModeKey;
use retrovisor_core::vcpu::{Seg, Vcpu};
use retrovisor_core::{Gpa, Icount};
use std::fmt::{self, Write};

/// Instructions listed at most.
const MAX_LINES: usize = 64;
/// Bytes of code looked at for them.
const CODE_BYTES: usize = MAX_LINES * 15;
/// Places in memory shown at most.
const MAX_PLACES: usize = 8;
/// Bytes shown of each.
const PLACE_BYTES: usize = 16;

/// What the two machines are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// The one that is right by definition.
    pub reference: &'static str,
    pub subject: &'static str,
}

impl Names {
    /// In lockstep.
    pub const ENGINES: Self = Self { reference: "interpreter", subject: "translator" };
}

/// A difference between two machines, in lockstep the translator and the interpreter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    pub names: Names,
    /// Where the step began: the last point known to be the same.
    pub from: Icount,
    /// Where the subject (in lockstep the translator's machine) stood when the difference was seen.
    pub at: Icount,
    /// What differs, in a few words each.
    pub what: Vec<String>,
    /// Everything there is to see, in many lines.
    pub details: String,
}

impl Mismatch {
    /// The difference in one line.
    pub fn headline(&self) -> String {
        let what = self.what.join(", ");
        let Names { reference, subject } = self.names;
        format!(
            "the {subject} differs from the {reference} after instructions {} to {}: {what}",
            self.from, self.at
        )
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.headline(), self.details.trim_end())
    }
}

/// A step that went wrong.
pub(crate) struct Scene<'a> {
    pub names: Names,
    pub from: Icount,
    /// The vCPU about to execute at `from`, and its state there.
    pub vcpu: usize,
    pub before: &'a Vcpu,
    /// How the step ended on the reference and on the subject.
    pub exits: (VmExit, VmExit),
}

impl Scene<'_> {
    /// Compares all there is, and describes it.
    pub fn report(&self, jit: &Vm, interp: &Vm) -> Mismatch {
        let at = Icount(jit.sys.icount);
        let (names, what, details) = (self.names, Vec::new(), String::new());
        let mut m = Mismatch { names, from: self.from, at, what, details };
        self.ends(jit, interp, &mut m);
        self.listing(jit, interp, &mut m.details);
        self.registers(jit, interp, &mut m);
        memory(jit, interp, &mut m);
        devices(jit, interp, &mut m);
        if let Some(text) = host_code(jit, self.before) {
            let _ = writeln!(m.details, "translated code:\n{}", text.trim_end());
        }
        m
    }

    /// How and where the step ended.
    fn ends(&self, jit: &Vm, interp: &Vm, m: &mut Mismatch) {
        let (b, cpu) = (jit.when(), self.before);
        let a = interp.when();
        if self.exits.0 != self.exits.1 {
            let Names { reference, subject } = self.names;
            m.what.push(format!("{reference} {:?}, {subject} {:?}", self.exits.0, self.exits.1));
        }
        if a.icount != b.icount {
            m.what.push(format!("the {} stands at instruction {}", self.names.reference, a.icount));
        } else if a.time != b.time {
            m.what.push(format!("guest time {} and {}", a.time, b.time));
        }
        if interp.current != jit.current {
            m.what.push(format!(
                "vCPU {} is next on the {}, {} on the {}",
                interp.current, self.names.reference, jit.current, self.names.subject
            ));
        }
        let (bits, cpl) = (cpu.mode.bits, cpu.mode.cpl);
        let _ = writeln!(
            m.details,
            "step: instructions {} to {}, from vCPU {} at rip {:#x} ({bits}-bit code, CPL {cpl})",
            self.from, b.icount, self.vcpu, cpu.rip
        );
    }

    /// The guest's instructions from the step's start on, as the reference's memory has them now.
    fn listing(&self, jit: &Vm, interp: &Vm, out: &mut String) {
        let cpu = self.before;
        let lin = cpu.seg[Seg::Cs as usize].lin_base.wrapping_add(cpu.rip) & cpu.mode.lin_mask;
        let mut code = vec![0; CODE_BYTES];
        let got = read_linear(&interp.sys.mem, &Paging::of(cpu), lin, &mut code);
        let steps = jit.sys.icount.saturating_sub(self.from.0);
        let count = usize::try_from(steps).unwrap_or(MAX_LINES).clamp(1, MAX_LINES);
        let _ = writeln!(
            out,
            "guest code from there on, straight ahead ({steps} instructions and deliveries were executed):"
        );
        if got == 0 {
            let _ = writeln!(out, "  (linear address {lin:#x} is not mapped to memory)");
        }
        for line in disassemble(&code[..got], cpu.mode.bits, cpu.rip, count) {
            let _ = writeln!(out, "  {line}");
        }
    }

    fn registers(&self, jit: &Vm, interp: &Vm, m: &mut Mismatch) {
        for (n, (i, j)) in interp.vcpus.iter().zip(&jit.vcpus).enumerate() {
            let names = registers::differing(i, j);
            if names.is_empty() && n != self.vcpu {
                continue;
            }
            if !names.is_empty() {
                let prefix = if jit.vcpus.len() > 1 { format!("vCPU {n}: ") } else { String::new() };
                m.what.push(format!("{prefix}{}", names.join(" ")));
            }
            let before = (n == self.vcpu).then_some(self.before);
            let _ = writeln!(m.details, "registers of vCPU {n}:");
            registers::table(self.names, before, i, j, &mut m.details);
        }
    }
}

/// The translated code of the block the step began with. If no block begins there, of those around it.
fn host_code(jit: &Vm, cpu: &Vcpu) -> Option<String> {
    let t = jit.translator()?;
    let mode = ModeKey::of(cpu)?;
    let frame = walk(&jit.sys.mem, &Paging::of(cpu), cpu.rip & cpu.mode.lin_mask).ok()?.gpa.frame();
    let around: Vec<(u32, u64)> = t
        .blocks()
        .filter(|(_, b)| b.key.mode == mode && b.contains(cpu.rip))
        .filter(|(_, b)| b.key.rip >> 12 != cpu.rip >> 12 || b.key.gpa.frame() == frame)
        .map(|(id, b)| (id, b.key.rip))
        .collect();
    let begins = around.iter().any(|(_, rip)| *rip == cpu.rip);
    let shown = around.iter().filter(|(_, rip)| !begins || *rip == cpu.rip);
    let text: String = shown.filter_map(|(id, _)| t.listing(*id, &jit.sys.mem)).collect();
    (!text.is_empty()).then_some(text)
}

/// Reads code through the page tables as they are; how many bytes could be read.
fn read_linear(mem: &Memory, paging: &Paging, lin: u64, buf: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buf.len() {
        let at = lin.wrapping_add(done as u64);
        let n = (buf.len() - done).min(4096 - (at & 4095) as usize);
        let Ok(w) = walk(mem, paging, at) else { break };
        if !mem.read_phys(w.gpa, &mut buf[done..done + n]) {
            break;
        }
        done += n;
    }
    done
}

/// The guest-physical address of a slab page; ROM beyond the map has none.
fn gpa_of(mem: &Memory, page: usize) -> Option<Gpa> {
    let off = (page as u64) << 12;
    let region = mem.map.regions().iter().find(|r| off >= r.offset && off - r.offset < r.end - r.start)?;
    Some(Gpa(region.start + (off - region.offset)))
}

/// Compares all of memory.
fn memory(jit: &Vm, interp: &Vm, m: &mut Mismatch) {
    let (a, b) = (&interp.sys.mem.ram, &jit.sys.mem.ram);
    let pages = a.len().min(b.len()) >> 12;
    let Names { reference, subject } = m.names;
    let (mut bytes, mut places, mut first) = (0usize, 0, None);
    let mut text = String::new();
    for page in (0..pages).filter(|p| a.page(*p) != b.page(*p)) {
        let (x, y) = (a.page(page), b.page(page));
        bytes += x.iter().zip(y).filter(|(x, y)| x != y).count();
        let mut at = 0;
        while let Some(n) = (at..4096).find(|n| x[*n] != y[*n]) {
            places += 1;
            let end = (n + PLACE_BYTES).min(4096);
            at = end;
            if places > MAX_PLACES {
                break;
            }
            let place = match gpa_of(&interp.sys.mem, page) {
                Some(g) => format!("gpa {:#x}", g.0 + n as u64),
                None => format!("slab {:#x}", (page << 12) + n),
            };
            first.get_or_insert(place.clone());
            let _ =
                writeln!(text, "  {place}: {reference} {}  {subject} {}", hex(&x[n..end]), hex(&y[n..end]));
        }
    }
    if let Some(first) = first {
        m.what.push(format!("{bytes} bytes of memory from {first} on"));
        let more = if places > MAX_PLACES { " (the first places)" } else { "" };
        let _ = write!(m.details, "memory, {bytes} bytes differ{more}:\n{text}");
    }
}

fn hex(bytes: &[u8]) -> String {
    let all: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    all.join(" ")
}

/// Compares the saved state part by part; the vCPUs are shown elsewhere.
fn devices(jit: &Vm, interp: &Vm, m: &mut Mismatch) {
    let (a, b) = (interp.save_state(), jit.save_state());
    if a == b {
        return;
    }
    let Names { reference, subject } = m.names;
    let mut names = Vec::new();
    for (x, y) in parts(&a).into_iter().zip(parts(&b)) {
        if x != y && x.0 != "vcpu" {
            let at = x.1.iter().zip(y.1).position(|(x, y)| x != y).unwrap_or(0);
            let shown = |v: &[u8]| hex(&v[at.min(v.len())..(at + PLACE_BYTES).min(v.len())]);
            let _ = writeln!(
                m.details,
                "saved state of {}, from byte {at}: {reference} {}  {subject} {}",
                x.0,
                shown(x.1),
                shown(y.1)
            );
            names.push(x.0.to_owned());
        }
    }
    if names.is_empty() && m.what.is_empty() {
        names.push("what stands before the parts of saved state (slices, icount)".into());
    }
    if !names.is_empty() {
        m.what.push(format!("state of {}", names.join(", ")));
    }
}

/// The named parts of saved state: `name (u8 length + bytes), version (u16), length (u32), fields`. What stands
/// before the first part and after the last has no name and is left out.
fn parts(state: &[u8]) -> Vec<(&str, &[u8])> {
    let mut out = Vec::new();
    let Some(mut at) =
        (0..state.len()).find(|n| part(&state[*n..]).is_some_and(|(name, ..)| name == "clock"))
    else {
        return out;
    };
    while let Some((name, fields, len)) = state.get(at..).and_then(part) {
        out.push((name, fields));
        at += len;
    }
    out
}

/// The part that begins here: its name, its fields, its length.
fn part(s: &[u8]) -> Option<(&str, &[u8], usize)> {
    let n = usize::from(*s.first()?);
    let name = std::str::from_utf8(s.get(1..1 + n)?).ok()?;
    let header = s.get(1 + n..1 + n + 6)?;
    let len = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
    Some((name, s.get(n + 7..n + 7 + len)?, n + 7 + len))
}
