//! A small interrupt-driven guest: computes, reads the time, halts, takes timer and serial interrupts. With its machine, and
//! somebody who types.
#![allow(clippy::unwrap_used)]

use crate::asm::multiboot;
use iced_x86::code_asm::*;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::{GuestTime, Icount};

/// Where the guest counts timer ticks, and (at +12) adds up what it was sent.
pub const TICKS: u32 = 0x1a_0000;
/// The guest's interrupt descriptor table; the timer is vector 0x20.
pub const IDT: u32 = 0x18_0000;
const TABLES: u32 = 0x17_0000;
/// What the guest writes to isa-debug-exit.
pub const DONE: u32 = 0x15;

fn out8(a: &mut CodeAssembler, port: u16, value: u32) {
    a.mov(edx, u32::from(port)).unwrap();
    a.mov(eax, value).unwrap();
    a.out(dx, al).unwrap();
}

/// EAX becomes the address of `code`, which is stepped over.
fn address_of(a: &mut CodeAssembler, code: impl FnOnce(&mut CodeAssembler)) {
    let mut after = a.create_label();
    a.call(after).unwrap();
    code(a);
    a.set_label(&mut after).unwrap();
    a.pop(eax).unwrap();
}

/// An interrupt gate for `handler`.
fn gate(a: &mut CodeAssembler, vector: u32, handler: impl FnOnce(&mut CodeAssembler)) {
    address_of(a, handler);
    a.mov(ebx, eax).unwrap();
    a.and(ebx, 0xffff).unwrap();
    a.or(ebx, 0x8_0000).unwrap();
    a.mov(dword_ptr(IDT + vector * 8), ebx).unwrap();
    a.and(eax, 0xffff_0000u32 as i32).unwrap();
    a.or(eax, 0x8e00).unwrap();
    a.mov(dword_ptr(IDT + vector * 8 + 4), eax).unwrap();
}

fn timer(a: &mut CodeAssembler) {
    a.push(eax).unwrap();
    a.push(edx).unwrap();
    a.inc(dword_ptr(TICKS)).unwrap();
    out8(a, 0x43, 0);
    a.mov(edx, 0x40).unwrap();
    a.in_(al, dx).unwrap();
    a.add(dword_ptr(TICKS + 8), eax).unwrap();
    out8(a, 0xe9, u32::from(b'.'));
    out8(a, 0x20, 0x20);
    a.pop(edx).unwrap();
    a.pop(eax).unwrap();
    a.iretd().unwrap();
}

fn serial(a: &mut CodeAssembler) {
    let (mut more, mut done) = (a.create_label(), a.create_label());
    a.push(eax).unwrap();
    a.push(edx).unwrap();
    a.set_label(&mut more).unwrap();
    a.mov(edx, 0x3fd).unwrap();
    a.in_(al, dx).unwrap();
    a.test(al, 1).unwrap();
    a.jz(done).unwrap();
    a.mov(edx, 0x3f8).unwrap();
    a.in_(al, dx).unwrap();
    a.out(dx, al).unwrap();
    a.add(dword_ptr(TICKS + 12), eax).unwrap();
    a.jmp(more).unwrap();
    a.set_label(&mut done).unwrap();
    out8(a, 0x20, 0x20);
    a.pop(edx).unwrap();
    a.pop(eax).unwrap();
    a.iretd().unwrap();
}

/// Flat segments, an IDT, the PICs at 0x20, IRQ 0 and 4 open.
fn set_up(a: &mut CodeAssembler) {
    a.mov(esp, 0x16_0000u32).unwrap();
    let tables = [
        (8, 0x0000_ffffu32),
        (12, 0x00cf_9b00),
        (16, 0x0000_ffff),
        (20, 0x00cf_9300),
        (0x100, (TABLES & 0xffff) << 16 | 23),
        (0x104, TABLES >> 16),
        (0x110, (IDT & 0xffff) << 16 | 0x1ff),
        (0x114, IDT >> 16),
    ];
    for (at, value) in tables {
        a.mov(dword_ptr(TABLES + at), value).unwrap();
    }
    a.lgdt(ptr(TABLES + 0x100)).unwrap();
    // A far return to the instruction after the call loads CS.
    let mut flat = a.create_label();
    a.call(flat).unwrap();
    let mut here = a.create_label();
    a.jmp(here).unwrap();
    a.set_label(&mut flat).unwrap();
    a.pop(eax).unwrap();
    a.push(8).unwrap();
    a.push(eax).unwrap();
    a.retf().unwrap();
    a.set_label(&mut here).unwrap();
    a.mov(eax, 16).unwrap();
    a.mov(ds, eax).unwrap();
    a.mov(es, eax).unwrap();
    a.mov(ss, eax).unwrap();
    gate(a, 0x20, timer);
    gate(a, 0x24, serial);
    a.lidt(ptr(TABLES + 0x110)).unwrap();
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2)]
    {
        out8(a, port, value);
    }
    // 10 kHz from the PIT, receive interrupts from COM1.
    let rest = [
        (0xa1, 1),
        (0x21, 0xee),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, 119),
        (0x40, 0),
        (0x3f9, 1),
        (0x3fc, 11),
    ];
    for (port, value) in rest {
        out8(a, port, value);
    }
}

/// Computes, reads the TSC, halts; counts timer ticks, echoes serial input; after `ticks` leaves by isa-debug-exit.
pub fn guest(ticks: u32) -> Vec<u8> {
    multiboot(|a| {
        set_up(a);
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.sti().unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(ecx, 3000).unwrap();
        a.set_label(&mut inner).unwrap();
        a.imul_3(esi, esi, 0x343fd).unwrap();
        a.add(esi, 0x26_9ec3).unwrap();
        a.mov(ebx, esi).unwrap();
        a.and(ebx, 0xfffc).unwrap();
        a.add(dword_ptr(ebx + 0x1b_0000), esi).unwrap();
        // Time is read in the middle of straight code, too, where no boundary follows by itself.
        let mut skip = a.create_label();
        a.test(ecx, 15).unwrap();
        a.jnz(skip).unwrap();
        a.rdtsc().unwrap();
        a.add(esi, eax).unwrap();
        a.set_label(&mut skip).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(inner).unwrap();
        a.rdtsc().unwrap();
        a.add(esi, eax).unwrap();
        a.hlt().unwrap();
        a.cmp(dword_ptr(TICKS), ticks).unwrap();
        a.jb(again).unwrap();
        a.mov(edx, 0xf4).unwrap();
        a.mov(eax, DONE).unwrap();
        a.out(dx, eax).unwrap();
        a.cli().unwrap();
        a.hlt().unwrap();
    })
}

/// The guest's machine.
pub fn config(clock: ClockKind) -> MachineConfig {
    MachineConfig {
        memory: 8 << 20,
        clock,
        debug_exit: Some((0xf4, 4)),
        no_reboot: true,
        hash_interval: 1 << 16,
        ..MachineConfig::default()
    }
}

/// [`guest`], to be booted.
pub fn images(ticks: u32) -> Images {
    Images { kernel: Some(guest(ticks)), kernel_name: "guest".into(), ..Images::default() }
}

/// A generator of test cases: xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }
    /// Mostly small numbers, up to 2 to the power of `bits`.
    pub fn slice(&mut self, bits: u64) -> u64 {
        let bits = self.draw() % (bits + 1);
        1 + self.draw() % (1 << bits)
    }
}

/// An input port that types a byte at fixed guest times, and asks to be polled at every `cadence` instructions or at the engine's leisure.
pub struct Keys {
    at: Vec<u64>,
    cadence: Option<u64>,
    last: u64,
}

impl Keys {
    pub fn new(cadence: Option<u64>) -> Self {
        Self { at: (1..=40).rev().map(|n| n * 70_001).collect(), cadence, last: 0 }
    }
}

impl InputPort for Keys {
    fn poll(&mut self, now: When) -> Poll {
        self.last = now.icount.0;
        match self.at.last() {
            Some(at) if *at <= now.icount.0 => {
                let n = self.at.pop().unwrap_or(0);
                Poll::Event(InputEvent::Serial { port: 0, bytes: vec![b'a' + (n % 26) as u8] })
            }
            _ => Poll::None,
        }
    }

    fn next_poll(&self) -> Option<Icount> {
        let polled = self.cadence.map_or(u64::MAX, |c| self.last + c);
        Some(Icount(self.at.last().map_or(u64::MAX >> 2, |a| *a).min(polled)))
    }

    fn answer(&mut self, _now: When, _query: Query) -> u64 {
        0
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        // The guest's timer always runs; a key due at this very instruction comes first.
        match self.at.last() {
            Some(at) if *at <= now.icount.0 => Idle::Input(GuestTime(now.time.0 + 1)),
            _ if deadline.is_some() => Idle::Deadline,
            _ => Idle::End,
        }
    }
}
