//! REP MOVS and REP STOS against a model that copies element by element: any overlap, direction, page crossing, and
//! any place where the engine asks to stop.
#![allow(clippy::expect_used)]

use retrovisor_core::addr::Gpa;
use retrovisor_tests::random::Rng;
use retrovisor_tests::small::{CodeSize, Small};

const CODE: u64 = 0x1000;
const AREA: u64 = 0x10_0000;
const AREA_LEN: usize = 0x6000;

struct Copy {
    stos: bool,
    /// log2 of the element size.
    width: u32,
    backwards: bool,
    src: u64,
    dst: u64,
    count: u64,
    value: u64,
}

impl Copy {
    fn random(r: &mut Rng) -> Self {
        let width = r.below(4) as u32;
        let count = if r.once_in(3) { r.below(12) } else { r.below(0x1800 >> width) };
        let src = AREA + 0x1800 + r.below(0x3000);
        // Half of the time close to the source, so that they overlap.
        let dst = if r.once_in(2) {
            src.wrapping_add(r.below(64)).wrapping_sub(32)
        } else {
            AREA + 0x1800 + r.below(0x3000)
        };
        Self { stos: r.once_in(3), width, backwards: r.once_in(4), src, dst, count, value: r.bits() }
    }

    fn code(&self) -> Vec<u8> {
        let mut code = vec![0xf3];
        match self.width {
            1 => code.insert(0, 0x66),
            3 => code.push(0x48),
            _ => {}
        }
        code.push(if self.stos { 0xaa } else { 0xa4 } + u8::from(self.width > 0));
        code
    }

    /// What memory must look like afterwards.
    fn model(&self, area: &mut [u8]) {
        let size = 1usize << self.width;
        let step = if self.backwards { -(size as i64) } else { size as i64 };
        for n in 0..self.count as i64 {
            let at = |base: u64| (base - AREA) as usize;
            let d = at(self.dst.wrapping_add((n * step) as u64));
            let s = at(self.src.wrapping_add((n * step) as u64));
            if self.stos {
                area[d..d + size].copy_from_slice(&self.value.to_le_bytes()[..size]);
            } else {
                area.copy_within(s..s + size, d);
            }
        }
    }
}

#[test]
fn test_rep_movs_and_stos_are_element_by_element() {
    let mut m = Small::new(CodeSize::Bits64).expect("memory");
    for seed in 0..600 {
        let mut r = Rng(seed);
        let c = Copy::random(&mut r);
        let mut area: Vec<u8> = (0..AREA_LEN).map(|_| r.bits() as u8).collect();
        m.sys.mem.write_phys(Gpa(AREA), &area);
        m.sys.mem.write_phys(Gpa(CODE), &c.code());
        (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[6], m.cpu.gpr[7]) = (c.value, c.count, c.src, c.dst);
        m.cpu.flags.put(1 << 10, c.backwards);
        m.cpu.rip = CODE;
        let start = m.sys.icount;
        let end = CODE + c.code().len() as u64;
        while m.cpu.rip != end {
            let limit = m.sys.icount + 1 + r.below(2000);
            m.step_until(limit).expect("no fault");
            assert!(m.sys.icount <= limit, "seed {seed}: ran past the limit");
            assert_eq!(m.sys.icount - start, (c.count - m.cpu.gpr[1]).max(1), "seed {seed}: icount");
        }
        c.model(&mut area);
        let mut now = vec![0; AREA_LEN];
        m.sys.mem.read_phys(Gpa(AREA), &mut now);
        let bad = (0..AREA_LEN).find(|&n| now[n] != area[n]);
        assert_eq!(bad, None, "seed {seed}: first wrong byte; {:#x} to {:#x} x {}", c.src, c.dst, c.count);
        let moved = if c.backwards { (c.count << c.width).wrapping_neg() } else { c.count << c.width };
        assert_eq!(m.cpu.gpr[7], c.dst.wrapping_add(moved), "seed {seed}");
        assert_eq!(m.cpu.gpr[6], c.src.wrapping_add(if c.stos { 0 } else { moved }), "seed {seed}");
        assert_eq!(m.cpu.gpr[1], 0, "seed {seed}");
    }
}
