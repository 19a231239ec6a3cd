//! Runs the tables `tests/insn/*.ins` on the interpreter: what the host cannot run from 64-bit mode, and faults whose
//! exact form a host signal does not tell. The expectations are the manual's.
#![allow(clippy::expect_used)]

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use retrovisor_core::addr::Gpa;
use retrovisor_core::exception::{Exception, name};
use retrovisor_tests::USER_FLAGS;
use retrovisor_tests::ins::{CODE_AT, InsCase, parse};
use retrovisor_tests::small::{CodeSize, Small};
use std::path::Path;

const FLAG_NAMES: [(u64, &str); 7] = [
    (1, "cf"),
    (1 << 2, "pf"),
    (1 << 4, "af"),
    (1 << 6, "zf"),
    (1 << 7, "sf"),
    (1 << 10, "df"),
    (1 << 11, "of"),
];

/// The claimed disassembly, so that the bytes and the reader agree.
fn check_text(c: &InsCase) -> Result<(), String> {
    let bits = match c.mode {
        CodeSize::Real | CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let insn = Decoder::with_ip(bits, &c.code, CODE_AT, DecoderOptions::NONE).decode();
    let mut text = String::new();
    NasmFormatter::new().format(&insn, &mut text);
    if text == c.text { Ok(()) } else { Err(format!("the bytes are `{text}`, not `{}`", c.text)) }
}

fn prepare(c: &InsCase) -> std::io::Result<Small> {
    let mut m = Small::new(c.mode)?;
    m.sys.mem.write_phys(Gpa(CODE_AT), &c.code);
    m.cpu.rip = CODE_AT;
    m.cpu.gpr = [0; 21];
    for (r, v) in &c.before.gpr {
        m.cpu.gpr[*r] = *v;
    }
    for (f, on) in &c.before.flags {
        m.cpu.flags.put(*f, *on);
    }
    for (at, bytes) in &c.before.memory {
        m.sys.mem.write_phys(Gpa(*at), bytes);
    }
    for (s, limit) in &c.before.limits {
        m.cpu.seg[*s].limit = *limit;
    }
    m.cpu.refresh();
    Ok(m)
}

fn describe(e: Exception) -> String {
    if e.has_error { format!("{}({:x})", name(e.vector), e.error) } else { name(e.vector).into() }
}

/// Runs a case; the error lists every difference.
fn run(c: &InsCase) -> Result<(), String> {
    check_text(c)?;
    let mut m = prepare(c).map_err(|e| e.to_string())?;
    let before = m.cpu.clone();
    let memory = m.sys.mem.ram.as_slice().to_vec();
    let fault = match c.before.limit {
        Some(limit) => m.step_until(limit),
        None => m.step(),
    };
    let fault = fault.err().map(describe);
    let mut wrong = Vec::new();
    let mut check = |what: String, want: u64, got: u64| {
        if want != got {
            wrong.push(format!("{what}: expected {want:#x}, got {got:#x}"));
        }
    };
    for n in 0..16 {
        check(format!("gpr {n}"), *c.after.gpr.get(&n).unwrap_or(&before.gpr[n]), m.cpu.gpr[n]);
    }
    let next = CODE_AT + if fault.is_some() { 0 } else { c.code.len() as u64 };
    check("rip".into(), c.after.rip.unwrap_or(next), m.cpu.rip);
    for (bit, name) in FLAG_NAMES.into_iter().filter(|(b, _)| c.undefined & b == 0) {
        let want = c.after.flags.get(&bit).copied().unwrap_or(before.flags.has(bit));
        check(name.into(), want.into(), m.cpu.flags.has(bit).into());
    }
    check("system flags".into(), before.flags.0 & !USER_FLAGS, m.cpu.flags.0 & !USER_FLAGS);
    if let Some(icount) = c.after.icount {
        check("icount".into(), icount, m.sys.icount);
    }
    let mut expected = memory;
    for (at, bytes) in &c.after.memory {
        expected[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    let now = m.sys.mem.ram.as_slice();
    if expected != now {
        let at = (0..now.len()).find(|&n| now[n] != expected[n]).unwrap_or(0);
        check(format!("byte at {at:#x}"), expected[at].into(), now[at].into());
    }
    if fault != c.fault {
        wrong.push(format!("fault: expected {:?}, got {fault:?}", c.fault));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

#[test]
fn test_every_case_of_the_tables() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("insn");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("tests/insn").map(|e| e.expect("entry").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "ins"));
    files.sort();
    let (mut ran, mut failures) = (0, Vec::new());
    for f in &files {
        let file = f.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cases =
            parse(&std::fs::read_to_string(f).expect("readable")).unwrap_or_else(|e| panic!("{file}: {e}"));
        for c in &cases {
            ran += 1;
            if let Err(e) = run(c) {
                failures.push(format!("{file}:{}: {}: {e}", c.line, c.name));
            }
        }
    }
    println!("{ran} cases in {} files", files.len());
    assert!(failures.is_empty(), "{} of {ran} cases fail:\n{}", failures.len(), failures.join("\n"));
    assert!(ran > 0, "no cases found");
}
