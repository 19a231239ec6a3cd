//! One logged input and its delta coding. Encoder and decoder share [`Predictor`], so they cannot drift apart.
//!
//! A record is a tag byte (low four bits: kind, then flags), the icount as a difference from the point before, the
//! guest time only if it differs from the prediction, and the fields of its kind.

use super::varint::{Cursor, Malformed, put, put_bytes, put_signed};
use super::{MAX_POINT, MAX_RECORD_BYTES};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{InputEvent, Query, When};
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::{GuestTime, Icount};

/// What was logged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// An asynchronous input, applied at this point.
    Event(InputEvent),
    /// The answer to a synchronous query asked at this point.
    Answer { query: Query, value: u64 },
    /// A hash point: the state hash, and the digest of all output so far.
    Hash { hash: StateHash, output: u64 },
}

/// One record of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub when: When,
    pub what: What,
}

/// The guest time differs from the prediction and follows the icount.
const TIME: u8 = 0x10;
/// [`kind::HASH`]: the output digest changed since the hash before (in this frame) and follows.
const OUTPUT: u8 = 0x20;

mod kind {
    pub const SERIAL: u8 = 0;
    pub const KEY: u8 = 1;
    pub const POWER_BUTTON: u8 = 2;
    pub const RESET: u8 = 3;
    pub const NMI: u8 = 4;
    pub const TICK: u8 = 5;
    pub const WRITE_PHYS: u8 = 6;
    pub const WRITE_REG: u8 = 7;
    pub const HOST_TIME: u8 = 8;
    pub const BOOT_WALL_TIME: u8 = 9;
    pub const RANDOM: u8 = 10;
    pub const HASH: u8 = 11;
}

/// What both sides know before a record is read: the point before it, and how guest time follows icount.
#[derive(Clone, Copy, Debug)]
pub struct Predictor {
    point: When,
    /// Guest nanoseconds an instruction takes; 0 under the host clock, where time only moves by records.
    rate: u64,
    host: bool,
    /// Output digest at the last hash point of this frame.
    output: Option<u64>,
}

impl Predictor {
    /// State at the start of a frame.
    pub fn new(start: When, config: &MachineConfig) -> Self {
        let host = config.clock == ClockKind::Host;
        Self { point: start, rate: if host { 0 } else { config.ns_per_insn }, host, output: None }
    }

    /// The point of the last record.
    pub fn point(&self) -> When {
        self.point
    }

    /// Guest time expected `insns` instructions later.
    fn time_after(&self, insns: u64) -> u64 {
        self.point.time.0.wrapping_add(insns.wrapping_mul(self.rate))
    }

    /// Moves past a record.
    fn pass(&mut self, record: &Record) {
        self.point = record.when;
        let told = match &record.what {
            What::Answer { query: Query::HostTime, value } => *value,
            What::Event(InputEvent::Tick { time }) => time.0,
            What::Hash { output, .. } => {
                self.output = Some(*output);
                return;
            }
            _ => return,
        };
        if self.host {
            self.point.time.0 = self.point.time.0.max(told);
        }
    }

    /// Appends `record`. Its point must not lie before [`Predictor::point`] by icount.
    pub fn put(&mut self, out: &mut Vec<u8>, record: &Record) {
        let insns = record.when.icount - self.point.icount;
        let late = record.when.time.0.wrapping_sub(self.time_after(insns)) as i64;
        let flags = if late != 0 { TIME } else { 0 };
        let tag_at = out.len();
        out.push(0);
        put(out, insns);
        if late != 0 {
            put_signed(out, late);
        }
        out[tag_at] = flags | self.put_fields(out, record);
        self.pass(record);
    }

    /// Appends the fields and returns the kind with its flags.
    fn put_fields(&self, out: &mut Vec<u8>, record: &Record) -> u8 {
        let from_now = |t: u64| t.wrapping_sub(record.when.time.0) as i64;
        match &record.what {
            What::Event(event) => return put_event(out, event, from_now),
            What::Answer { query: Query::HostTime, value } => put_signed(out, from_now(*value)),
            What::Answer { query: Query::BootWallTime, value } => put(out, *value),
            What::Answer { query: Query::Random, value } => out.extend_from_slice(&value.to_le_bytes()),
            What::Hash { hash, output } => {
                out.extend_from_slice(&hash.0.to_le_bytes());
                if self.output != Some(*output) {
                    out.extend_from_slice(&output.to_le_bytes());
                    return kind::HASH | OUTPUT;
                }
                return kind::HASH;
            }
        }
        match &record.what {
            What::Answer { query: Query::HostTime, .. } => kind::HOST_TIME,
            What::Answer { query: Query::BootWallTime, .. } => kind::BOOT_WALL_TIME,
            _ => kind::RANDOM,
        }
    }

    /// Reads the next record.
    pub fn get(&mut self, c: &mut Cursor<'_>) -> Result<Record, Malformed> {
        let tag = c.u8()?;
        if tag & !(0x0f | TIME | OUTPUT) != 0 || (tag & OUTPUT != 0 && tag & 0x0f != kind::HASH) {
            return Err("a record has unknown flags");
        }
        let insns = c.number()?;
        let late = if tag & TIME != 0 { c.signed()? } else { 0 };
        let icount = self.point.icount.0.checked_add(insns).ok_or("an icount is out of range")?;
        let time = self.time_after(insns).wrapping_add(late as u64);
        if icount > MAX_POINT || time > MAX_POINT {
            return Err("a point is out of range");
        }
        let when = When { icount: Icount(icount), time: GuestTime(time) };
        let what = self.get_fields(c, tag, time)?;
        let record = Record { when, what };
        self.pass(&record);
        Ok(record)
    }

    fn get_fields(&self, c: &mut Cursor<'_>, tag: u8, now: u64) -> Result<What, Malformed> {
        Ok(match tag & 0x0f {
            kind::HOST_TIME => What::Answer { query: Query::HostTime, value: get_time(c, now)? },
            kind::BOOT_WALL_TIME => What::Answer { query: Query::BootWallTime, value: c.number()? },
            kind::RANDOM => What::Answer { query: Query::Random, value: c.u64()? },
            kind::HASH => {
                let hash = StateHash(c.u128()?);
                let output = match self.output {
                    _ if tag & OUTPUT != 0 => c.u64()?,
                    Some(output) => output,
                    None => return Err("a hash point lacks its output digest"),
                };
                What::Hash { hash, output }
            }
            k => What::Event(get_event(c, k, now)?),
        })
    }
}

/// Appends an event's fields and returns its kind.
fn put_event(out: &mut Vec<u8>, event: &InputEvent, from_now: impl Fn(u64) -> i64) -> u8 {
    match event {
        InputEvent::Serial { port, bytes } => {
            out.push(*port);
            put_bytes(out, bytes);
            kind::SERIAL
        }
        InputEvent::Key { bytes } => {
            put_bytes(out, bytes);
            kind::KEY
        }
        InputEvent::PowerButton => kind::POWER_BUTTON,
        InputEvent::Reset => kind::RESET,
        InputEvent::Nmi => kind::NMI,
        InputEvent::Tick { time } => {
            put_signed(out, from_now(time.0));
            kind::TICK
        }
        InputEvent::WritePhys { gpa, bytes } => {
            put(out, *gpa);
            put_bytes(out, bytes);
            kind::WRITE_PHYS
        }
        InputEvent::WriteReg { vcpu, reg, value } => {
            out.push(*vcpu);
            put(out, u64::from(*reg));
            out.extend_from_slice(&value.to_le_bytes());
            kind::WRITE_REG
        }
    }
}

fn get_event(c: &mut Cursor<'_>, kind: u8, now: u64) -> Result<InputEvent, Malformed> {
    Ok(match kind {
        kind::SERIAL => InputEvent::Serial { port: c.u8()?, bytes: c.bytes(MAX_RECORD_BYTES)?.to_vec() },
        kind::KEY => InputEvent::Key { bytes: c.bytes(MAX_RECORD_BYTES)?.to_vec() },
        kind::POWER_BUTTON => InputEvent::PowerButton,
        kind::RESET => InputEvent::Reset,
        kind::NMI => InputEvent::Nmi,
        kind::TICK => InputEvent::Tick { time: GuestTime(get_time(c, now)?) },
        kind::WRITE_PHYS => {
            InputEvent::WritePhys { gpa: c.number()?, bytes: c.bytes(MAX_RECORD_BYTES)?.to_vec() }
        }
        kind::WRITE_REG => {
            let vcpu = c.u8()?;
            let reg = u16::try_from(c.number()?).map_err(|_| "a register number is out of range")?;
            InputEvent::WriteReg { vcpu, reg, value: c.u128()? }
        }
        _ => return Err("a record has an unknown kind"),
    })
}

/// Reads a time written as a difference from `now`.
fn get_time(c: &mut Cursor<'_>, now: u64) -> Result<u64, Malformed> {
    let t = now.wrapping_add(c.signed()? as u64);
    if t > MAX_POINT { Err("a time is out of range") } else { Ok(t) }
}

/// Splits an event whose bytes are too long for one record into events that mean the same, one after the other.
pub fn split(event: &InputEvent) -> Vec<InputEvent> {
    let pieces = |bytes: &[u8], make: &dyn Fn(usize, Vec<u8>) -> InputEvent| {
        let each = bytes.chunks(MAX_RECORD_BYTES).enumerate();
        each.map(|(i, part)| make(i * MAX_RECORD_BYTES, part.to_vec())).collect()
    };
    match event {
        InputEvent::Serial { port, bytes } if bytes.len() > MAX_RECORD_BYTES => {
            pieces(bytes, &|_, bytes| InputEvent::Serial { port: *port, bytes })
        }
        InputEvent::Key { bytes } if bytes.len() > MAX_RECORD_BYTES => {
            pieces(bytes, &|_, bytes| InputEvent::Key { bytes })
        }
        InputEvent::WritePhys { gpa, bytes } if bytes.len() > MAX_RECORD_BYTES => {
            pieces(bytes, &|at, bytes| InputEvent::WritePhys { gpa: gpa.wrapping_add(at as u64), bytes })
        }
        _ => vec![event.clone()],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(crate) fn at(icount: u64, time: u64) -> When {
        When { icount: Icount(icount), time: GuestTime(time) }
    }

    /// One record of every kind.
    pub(crate) fn every_kind() -> Vec<Record> {
        let events = [
            InputEvent::Serial { port: 1, bytes: b"ls\r".to_vec() },
            InputEvent::Key { bytes: vec![0xe0, 0x48] },
            InputEvent::PowerButton,
            InputEvent::Reset,
            InputEvent::Nmi,
            InputEvent::Tick { time: GuestTime(70_000) },
            InputEvent::WritePhys { gpa: 0xfffff000, bytes: vec![1, 2, 3] },
            InputEvent::WriteReg { vcpu: 3, reg: 65535, value: u128::MAX / 7 },
        ];
        let answers = [(Query::HostTime, 80_000), (Query::BootWallTime, u64::MAX), (Query::Random, u64::MAX)];
        let whats = events.into_iter().map(What::Event);
        let whats = whats.chain(answers.map(|(query, value)| What::Answer { query, value }));
        let hash = |output| What::Hash { hash: StateHash(u128::MAX / 5), output };
        let whats = whats.chain([hash(7), hash(7), hash(8)]);
        let mut all = Vec::new();
        for (i, what) in (0u64..).zip(whats) {
            // Strides of 100 instructions, idle time skipped now and then, never back.
            all.push(Record { when: at(1000 + i * 100, 100_000 + i * 100 + i / 3 * 1_000_000), what });
        }
        all
    }

    fn config(clock: ClockKind) -> MachineConfig {
        MachineConfig { clock, ..MachineConfig::default() }
    }

    #[test]
    fn test_every_kind_round_trips_on_both_clocks() {
        for clock in [ClockKind::Virtual, ClockKind::Host] {
            let records = every_kind();
            let mut p = Predictor::new(at(900, 900), &config(clock));
            let mut out = Vec::new();
            records.iter().for_each(|r| p.put(&mut out, r));
            let mut p = Predictor::new(at(900, 900), &config(clock));
            let mut c = Cursor::new(&out);
            for r in &records {
                assert_eq!(&p.get(&mut c).unwrap(), r);
            }
            assert!(c.is_empty());
        }
    }

    #[test]
    fn test_virtual_clock_needs_no_time_bytes() {
        let mut p = Predictor::new(at(0, 500), &config(ClockKind::Virtual));
        let mut out = Vec::new();
        p.put(&mut out, &Record { when: at(100, 600), what: What::Event(InputEvent::Nmi) });
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn test_host_time_reads_take_few_bytes() {
        let mut p = Predictor::new(at(0, 0), &config(ClockKind::Host));
        let mut out = Vec::new();
        let mut time = 0;
        for i in 1..=100 {
            let value = time + 5000;
            let what = What::Answer { query: Query::HostTime, value };
            p.put(&mut out, &Record { when: at(i * 50, time), what });
            time = value;
        }
        assert_eq!(out.len(), 400);
    }

    #[test]
    fn test_record_invalid_returns_error() {
        let config = MachineConfig::default();
        let decode = |bytes: &[u8]| Predictor::new(at(0, 0), &config).get(&mut Cursor::new(bytes));
        assert!(decode(&[]).is_err());
        assert!(decode(&[12, 0]).is_err(), "unknown kind");
        assert!(decode(&[0x44, 0]).is_err(), "unknown flag");
        assert!(decode(&[kind::NMI | OUTPUT, 0]).is_err(), "flag of another kind");
        assert!(decode(&[kind::HASH; 20]).is_err(), "no output digest yet");
        let mut far = vec![kind::NMI];
        put(&mut far, MAX_POINT + 1);
        assert!(decode(&far).is_err());
        let mut back = vec![kind::NMI | TIME, 0];
        put_signed(&mut back, -1);
        assert!(decode(&back).is_err(), "time before power-on");
        let mut long = vec![kind::KEY, 0];
        put_bytes(&mut long, &vec![0; MAX_RECORD_BYTES + 1]);
        assert!(decode(&long).is_err());
    }

    #[test]
    fn test_split_keeps_bytes_and_addresses() {
        let bytes: Vec<u8> = (0..MAX_RECORD_BYTES * 2 + 5).map(|i| (i % 251) as u8).collect();
        let parts = split(&InputEvent::WritePhys { gpa: 0x1000, bytes: bytes.clone() });
        assert_eq!(parts.len(), 3);
        let mut got = Vec::new();
        for part in parts {
            let InputEvent::WritePhys { gpa, bytes } = part else { panic!("{part:?}") };
            assert_eq!(gpa, 0x1000 + got.len() as u64);
            got.extend(bytes);
        }
        assert_eq!(got, bytes);
        assert_eq!(split(&InputEvent::Nmi), [InputEvent::Nmi]);
    }
}
