//! The architectural registers of two vCPUs: whether they are the same, and, if not, both files side by side.
//! A new field of a vCPU does not compile until it has a place here.

use super::Names;
use retrovisor_core::vcpu::fpu::Fpu;
use retrovisor_core::vcpu::msr::Msrs;
use retrovisor_core::vcpu::segment::{Segment, TableReg};
use retrovisor_core::vcpu::{Activity, Shadow, Vcpu};
use std::fmt::Write;

/// Are the architectural states of `a` and `b`, and what is derived from them alone, the same?
pub fn same(a: &Vcpu, b: &Vcpu) -> bool {
    // What most often differs comes first. `registers` has the complete list.
    (a.gpr, a.rip, a.flags) == (b.gpr, b.rip, b.flags)
        && (a.seg, a.mode) == (b.seg, b.mode)
        && (a.cr0, a.cr2, a.cr3, a.cr4, a.xcr0) == (b.cr0, b.cr2, b.cr3, b.cr4, b.xcr0)
        && (a.ldtr, a.tr, a.gdtr, a.idtr, a.pdpte) == (b.ldtr, b.tr, b.gdtr, b.idtr, b.pdpte)
        && (a.dr, a.dr6, a.dr7, a.pending_db) == (b.dr, b.dr6, b.dr7, b.pending_db)
        && (a.activity, a.shadow) == (b.activity, b.shadow)
        && (a.nmi_blocked, a.nmi_pending) == (b.nmi_blocked, b.nmi_pending)
        && a.fpu == b.fpu
        && a.msr == b.msr
}

/// A register by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    pub name: String,
    /// Shown even where it is the same on both sides.
    pub main: bool,
    pub value: u128,
    /// Hexadecimal digits.
    pub digits: usize,
}

/// The registers of a vCPU in the order they are shown.
#[derive(Default)]
struct List(Vec<Register>);

impl List {
    fn add(&mut self, main: bool, name: impl Into<String>, digits: usize, value: impl Into<u128>) {
        self.0.push(Register { name: name.into(), main, value: value.into(), digits });
    }

    fn segment(&mut self, name: &str, s: &Segment) {
        let Segment { selector, base, limit, attr, lin_base, fast } = *s;
        self.add(true, name, 4, selector);
        self.add(false, format!("{name}.base"), 16, base);
        self.add(false, format!("{name}.limit"), 8, limit);
        self.add(false, format!("{name}.attr"), 5, attr);
        self.add(false, format!("{name}.lin_base"), 16, lin_base);
        self.add(false, format!("{name}.fast"), 1, fast);
    }

    fn table(&mut self, name: &str, t: &TableReg) {
        let TableReg { base, limit } = *t;
        self.add(false, format!("{name}.base"), 16, base);
        self.add(false, format!("{name}.limit"), 4, limit);
    }

    fn all<T: Copy + Into<u128>>(&mut self, main: bool, digits: usize, list: &[(&str, T)]) {
        list.iter().for_each(|(name, v)| self.add(main, *name, digits, *v));
    }

    fn numbered<T: Copy + Into<u128>>(&mut self, name: &str, digits: usize, values: &[T]) {
        values.iter().enumerate().for_each(|(n, v)| self.add(false, format!("{name}{n}"), digits, *v));
    }

    fn fpu(&mut self, f: &Fpu) {
        let Fpu { r, fcw, fsw, ftw, fop, fip, fcs, fdp, fds, xmm, mxcsr } = f;
        for (n, (significand, sign_exponent)) in r.iter().enumerate() {
            let value = u128::from(*sign_exponent) << 64 | u128::from(*significand);
            self.add(false, format!("r{n}/mm{n}"), 20, value);
        }
        self.all(false, 4, &[("fcw", *fcw), ("fsw", *fsw), ("fop", *fop), ("fcs", *fcs), ("fds", *fds)]);
        self.all(false, 2, &[("ftw", *ftw)]);
        self.all(false, 16, &[("fip", *fip), ("fdp", *fdp)]);
        self.numbered("xmm", 32, xmm);
        self.all(false, 8, &[("mxcsr", *mxcsr)]);
    }

    #[rustfmt::skip]
    fn msrs(&mut self, m: &Msrs) {
        let Msrs {
            efer, star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, pat,
            misc_enable, tsc_aux, tsc_offset, tsc_adjust, apic_base, mtrr_def_type, mtrr_var, mtrr_fix, mcg_status,
            mcg_ctl, bios_sign_id, debugctl, xss,
        } = m;
        self.all(true, 16, &[("efer", *efer)]);
        self.all(false, 16, &[
            ("star", *star), ("lstar", *lstar), ("cstar", *cstar), ("sfmask", *sfmask),
            ("kernel_gs_base", *kernel_gs_base), ("sysenter_cs", *sysenter_cs), ("sysenter_esp", *sysenter_esp),
            ("sysenter_eip", *sysenter_eip), ("pat", *pat), ("misc_enable", *misc_enable), ("tsc_aux", *tsc_aux),
            ("tsc_offset", *tsc_offset), ("tsc_adjust", *tsc_adjust), ("apic_base", *apic_base),
            ("mtrr_def_type", *mtrr_def_type), ("mcg_status", *mcg_status), ("mcg_ctl", *mcg_ctl),
            ("bios_sign_id", *bios_sign_id), ("debugctl", *debugctl), ("xss", *xss),
        ]);
        self.numbered("mtrr_var", 16, mtrr_var);
        self.numbered("mtrr_fix", 16, mtrr_fix);
    }
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Every register of `cpu`.
#[rustfmt::skip]
pub fn registers(cpu: &Vcpu) -> Vec<Register> {
    let Vcpu {
        gpr, rip, flags, seg, mode, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, pdpte, xcr0, dr, dr6, dr7, msr, fpu,
        activity, shadow, nmi_blocked, nmi_pending, pending_db,
        // Not architectural: where an instruction stands while it executes, the TLB's place, a debugger's memory,
        // configuration.
        insn_rip: _, tlb: _, fault_chain: _, index: _, count: _, model: _,
    } = cpu;
    let mut l = List::default();
    l.all(true, 16, &[("rip", *rip), ("rflags", flags.0)]);
    for (n, v) in gpr.iter().enumerate() {
        l.add(n < GPR.len(), *GPR.get(n).unwrap_or(&"zero"), 16, *v);
    }
    l.all(true, 2, &[("cpl", mode.cpl), ("bits", mode.bits)]);
    for (name, s) in SEGMENTS.iter().zip(seg).chain([(&"ldtr", ldtr), (&"tr", tr)]) {
        l.segment(name, s);
    }
    l.table("gdtr", gdtr);
    l.table("idtr", idtr);
    l.all(true, 16, &[("cr0", *cr0), ("cr2", *cr2), ("cr3", *cr3), ("cr4", *cr4)]);
    l.numbered("pdpte", 16, pdpte);
    l.all(false, 16, &[("xcr0", *xcr0), ("dr6", *dr6), ("dr7", *dr7), ("pending_db", *pending_db)]);
    l.numbered("dr", 16, dr);
    l.all(true, 1, &[("activity", activity_number(*activity)), ("shadow", shadow_number(*shadow))]);
    l.all(false, 1, &[("nmi_blocked", u8::from(*nmi_blocked)), ("nmi_pending", u8::from(*nmi_pending))]);
    l.msrs(msr);
    l.fpu(fpu);
    l.0
}

/// 0 running, 1 halted, 2 waiting for SIPI, 3 shut down.
const fn activity_number(a: Activity) -> u8 {
    match a {
        Activity::Running => 0,
        Activity::Halted => 1,
        Activity::WaitForSipi => 2,
        Activity::Shutdown => 3,
    }
}

/// 0 none, 1 after STI, 2 after MOV SS.
const fn shadow_number(s: Shadow) -> u8 {
    match s {
        Shadow::None => 0,
        Shadow::Sti => 1,
        Shadow::MovSs => 2,
    }
}

/// Names of the set arithmetic and control flags.
fn flag_names(v: u128) -> String {
    const NAMES: [(u32, &str); 17] = [
        (0, "CF"),
        (2, "PF"),
        (4, "AF"),
        (6, "ZF"),
        (7, "SF"),
        (8, "TF"),
        (9, "IF"),
        (10, "DF"),
        (11, "OF"),
        (12, "IOPL0"),
        (13, "IOPL1"),
        (14, "NT"),
        (16, "RF"),
        (17, "VM"),
        (18, "AC"),
        (19, "VIF"),
        (21, "ID"),
    ];
    let set: Vec<&str> = NAMES.iter().filter(|(bit, _)| v >> bit & 1 != 0).map(|(_, n)| *n).collect();
    set.join(" ")
}

/// The names of the registers that differ.
pub fn differing(a: &Vcpu, b: &Vcpu) -> Vec<String> {
    let pairs = registers(a).into_iter().zip(registers(b));
    pairs.filter(|(a, b)| a.value != b.value).map(|(a, _)| a.name).collect()
}

/// The register files before the step and after it on both sides: the main registers, and whatever else differs.
/// Differences are marked with `<<`.
pub fn table(names: Names, before: Option<&Vcpu>, interp: &Vcpu, jit: &Vcpu, out: &mut String) {
    let before = before.map(registers);
    let line = |out: &mut String, cells: [&str; 5]| {
        let [name, a, b, c, mark] = cells;
        let text = format!("  {name:<14} {a:>20}  {b:>20}  {c:>20} {mark}");
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(out, ["", "before", names.reference, names.subject, ""]);
    for (n, (i, j)) in registers(interp).into_iter().zip(registers(jit)).enumerate() {
        let differs = i.value != j.value;
        if !i.main && !differs {
            continue;
        }
        let hex = |v: u128| format!("{v:0width$x}", width = i.digits);
        let old = before.as_ref().and_then(|b| b.get(n)).map_or(String::new(), |r| hex(r.value));
        let mut mark = if differs { "<<".to_owned() } else { String::new() };
        if differs && i.name == "rflags" {
            let _ = write!(mark, " [{}] against [{}]", flag_names(i.value), flag_names(j.value));
        }
        line(out, [&i.name, &old, &hex(i.value), &hex(j.value), &mark]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retrovisor_core::vcpu::cpuid::CpuModel;

    /// Changes one thing.
    type Change = fn(&mut Vcpu);

    #[test]
    fn test_every_kind_of_difference_is_seen_and_named() {
        let changes: [(&str, Change); 18] = [
            ("rax", |c| c.gpr[0] ^= 1),
            ("r15", |c| c.gpr[15] ^= 1 << 63),
            ("zero", |c| c.gpr[20] = 1),
            ("rip", |c| c.rip += 1),
            ("rflags", |c| c.flags.0 ^= 1 << 4),
            ("ds.limit", |c| c.seg[3].limit ^= 1),
            ("cs.attr", |c| c.seg[1].attr ^= 1),
            ("tr.base", |c| c.tr.base ^= 1),
            ("idtr.limit", |c| c.idtr.limit ^= 1),
            ("cr2", |c| c.cr2 ^= 1),
            ("pdpte3", |c| c.pdpte[3] ^= 1),
            ("dr6", |c| c.dr6 ^= 1),
            ("lstar", |c| c.msr.lstar ^= 1),
            ("xmm15", |c| c.fpu.xmm[15] ^= 1 << 127),
            ("r7/mm7", |c| c.fpu.r[7].1 ^= 1),
            ("mxcsr", |c| c.fpu.mxcsr ^= 1),
            ("shadow", |c| c.shadow = Shadow::Sti),
            ("pending_db", |c| c.pending_db ^= 1),
        ];
        let a = Vcpu::new(0, CpuModel::default());
        assert!(same(&a, &a.clone()) && differing(&a, &a).is_empty());
        for (name, change) in changes {
            let mut b = a.clone();
            change(&mut b);
            assert!(!same(&a, &b), "{name}");
            assert_eq!(differing(&a, &b), [name]);
            let mut text = String::new();
            table(Names::ENGINES, Some(&a), &a, &b, &mut text);
            let marked: Vec<&str> = text.lines().filter(|l| l.contains("<<")).collect();
            assert!(marked.len() == 1 && marked[0].trim_start().starts_with(name), "{text}");
        }
    }
}
