//! Pages translated code remembers: the same instruction reads and writes through one register while mappings, spaces and
//! rights change under it, and loops run over pages in every order, over their borders, and into what is not mapped.

use super::machine::*;
use iced_x86::code_asm::*;

const A: u64 = 0x4000_0000;
/// Frames, each filled with its own number.
const FRAMES: u64 = 0x20_0000;

fn frame(n: u64) -> u64 {
    FRAMES + n * 0x1000
}

/// What frame `n` is filled with.
fn words(n: u64) -> impl Iterator<Item = u8> {
    (0..512u64).flat_map(move |w| (n << 32 | w).to_le_bytes())
}

fn fill(g: &mut Guest, frames: u64) {
    for n in 0..frames {
        g.put(frame(n), words(n).collect::<Vec<u8>>());
    }
}

/// A subroutine at `A + 0x10_0000` adds the word RDI points to to RBX.
const READER: u64 = A + 0x10_0000;

fn reader(g: &mut Guest) {
    g.map(READER, 0x30_0000 | P | W);
    let code = assemble(64, READER, |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.lea(rbx, ptr(rbx + rbx * 2))?;
        a.add(rbx, rax)?;
        a.ret()
    });
    g.put(0x30_0000, code);
}

#[test]
fn test_a_page_is_not_remembered_in_another_space() {
    let r = run(|| {
        let mut g = Guest::long();
        fill(&mut g, 2);
        g.map(A, frame(0) | P | W);
        reader(&mut g);
        let root = g.table();
        for page in 0..RAM >> 12 {
            g.map_in(root, page << 12, page << 12 | P | W | U);
        }
        g.map_in(root, A, frame(1) | P | W);
        g.map_in(root, READER, 0x30_0000 | P | W);
        g.program(|a| {
            let mut top = a.create_label();
            a.mov(ebp, 100)?;
            a.mov(r8, ROOT)?;
            a.mov(r9, root)?;
            a.mov(rdi, A + 8)?;
            a.mov(rsi, READER)?;
            a.set_label(&mut top)?;
            a.call(rsi)?;
            a.call(rsi)?;
            a.xchg(r8, r9)?;
            a.mov(cr3, r8)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        })
    });
    let word = |turn: u64| if turn.is_multiple_of(2) { 1u64 } else { 1 << 32 | 1 };
    let step = |sum: u64, w: u64| sum.wrapping_mul(3).wrapping_add(w);
    let want = (0..100).fold(0, |s, t| step(step(s, word(t)), word(t)));
    assert_eq!((r.gpr[3], r.seen.len()), (want, 0));
}

#[test]
fn test_a_page_is_not_remembered_when_its_entry_changes() {
    let r = run(|| {
        let mut g = Guest::long();
        fill(&mut g, 4);
        let entry = g.map(A, frame(0) | P | W);
        reader(&mut g);
        g.program(|a| {
            let mut top = a.create_label();
            a.mov(ebp, 200)?;
            a.mov(rdi, A + 8)?;
            a.mov(rsi, READER)?;
            a.mov(r8, entry)?;
            a.set_label(&mut top)?;
            a.call(rsi)?;
            a.mov(eax, ebp)?;
            a.and(eax, 3)?;
            a.shl(eax, 12)?;
            a.add(eax, (FRAMES | P | W) as i32)?;
            a.mov(qword_ptr(r8), rax)?;
            a.invlpg(byte_ptr(rdi))?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        })
    });
    let step = |sum: u64, w: u64| sum.wrapping_mul(3).wrapping_add(w);
    let want = (1..200u64).rev().fold(step(0, 1), |s, n| step(s, ((n + 1) & 3) << 32 | 1));
    assert_eq!((r.gpr[3], r.seen.len()), (want, 0));
}

#[test]
fn test_a_page_that_becomes_read_only_is_not_written_in_a_loop() {
    let r = run(|| {
        let mut g = Guest::long();
        fill(&mut g, 1);
        let entry = g.map(A, frame(0) | P | W);
        g.program(|a| {
            let (mut top, mut inner) = (a.create_label(), a.create_label());
            a.mov(rdi, A)?;
            a.mov(r8, entry)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut top)?;
            a.mov(ecx, 100)?;
            a.set_label(&mut inner)?;
            a.mov(dword_ptr(rdi + rcx * 4), ecx)?;
            a.inc(rbx)?;
            a.dec(ecx)?;
            a.jnz(inner)?;
            a.and(qword_ptr(r8), !2)?;
            a.invlpg(byte_ptr(rdi))?;
            a.jmp(top)
        })
    });
    assert_eq!(r.page_fault().0, pf::P | pf::W);
    assert_eq!(r.gpr[3], 100);
}

const ROUNDS: i32 = 3;

/// Sums unaligned words from `A` on, `stride` bytes apart, up or down over pages of the frames in `order`, some rounds.
fn sweep(order: &[u64], stride: i32, down: bool) {
    let bytes = order.len() as u64 * 0x1000;
    let count = (bytes - 8) / stride as u64;
    let r = run(|| {
        let mut g = Guest::long();
        fill(&mut g, 16);
        for (n, f) in (0..).zip(order) {
            g.map(A + n * 0x1000, frame(*f) | P | W);
        }
        g.program(|a| {
            let (mut top, mut inner) = (a.create_label(), a.create_label());
            a.mov(ebp, ROUNDS)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut top)?;
            a.mov(rdi, if down { A + (count - 1) * stride as u64 } else { A })?;
            a.mov(ecx, count as i32)?;
            a.set_label(&mut inner)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.add(qword_ptr(rdi), rcx)?;
            a.add(rbx, rax)?;
            a.add(rdi, if down { -stride } else { stride })?;
            a.dec(ecx)?;
            a.jnz(inner)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        })
    });
    assert_eq!(r.seen, []);
    let mut memory: Vec<u8> = (0..16).flat_map(words).collect();
    let place = |at: u64| (order[at as usize >> 12] << 12 | at & 0xfff) as usize;
    let mut sum = 0u64;
    for left in (0..ROUNDS).flat_map(|_| (1..=count).rev()) {
        let at = stride as u64 * if down { left - 1 } else { count - left };
        let word = u64::from_le_bytes(std::array::from_fn(|n| memory[place(at + n as u64)]));
        sum = sum.wrapping_add(word);
        for (n, b) in (at..).zip(word.wrapping_add(left).to_le_bytes()) {
            memory[place(n)] = b;
        }
    }
    assert_eq!(r.gpr[3], sum);
}

#[test]
fn test_loops_over_pages_in_every_order() {
    for stride in [8, 13, 0x1003] {
        for down in [false, true] {
            // Neighbours; the other way round; some of both; twice the same.
            sweep(&[0, 1, 2, 3, 4], stride, down);
            sweep(&[4, 3, 2, 1, 0], stride, down);
            sweep(&[7, 8, 2, 3, 1, 15, 0, 1], stride, down);
            sweep(&[5, 5, 6, 5], stride, down);
        }
    }
}

/// A loop that runs up or down out of what is mapped; the handler sees the flags of the branch back.
fn off_the_edge(down: bool, stop: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let r = run(|| {
        let mut g = Guest::long();
        fill(&mut g, 2);
        g.map(A, frame(0) | P | W);
        g.map(A + 0x1000, frame(1) | P | W);
        g.program(|a| {
            let mut top = a.create_label();
            a.mov(rdi, if down { A + 0x1ff8 } else { A })?;
            a.mov(ecx, 5000)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut top)?;
            a.add(rax, qword_ptr(rdi))?;
            a.inc(rbx)?;
            a.add(rdi, if down { -8 } else { 8 })?;
            stop(a)?;
            a.jnz(top)?;
            a.hlt()
        })
    });
    assert_eq!(r.page_fault().2, if down { A - 8 } else { A + 0x2000 });
    assert_eq!(r.gpr[3], 1024);
}

#[test]
fn test_a_fault_in_a_loop_sees_the_flags_of_the_iteration_before() {
    for down in [false, true] {
        off_the_edge(down, |a| a.dec(ecx));
        off_the_edge(down, |a| a.sub(ecx, 3));
        off_the_edge(down, |a| a.cmp(ecx, 77));
        off_the_edge(down, |a| a.test(ecx, ecx));
        off_the_edge(down, |a| a.or(rdi, rdi));
        off_the_edge(down, |a| {
            a.stc()?;
            a.inc(ecx)
        });
    }
}
