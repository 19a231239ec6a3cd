//! Framing of the remote protocol: bytes to packets and back, with every broken form told apart.

/// Longest packet body accepted, in bytes.
pub const MAX_BODY: usize = 16 * 1024;

/// What arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// A packet with a good checksum: the bytes between `$` and `#`, escapes left in.
    Packet(Vec<u8>),
    /// A packet with a bad checksum, or one longer than [`MAX_BODY`].
    Bad,
    Ack,
    Nack,
    /// Ctrl-C.
    Interrupt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Between,
    Body,
    Checksum,
    LastDigit(u8),
}

/// Collects bytes into frames. Bytes between packets that mean nothing are skipped.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    state: State,
    body: Vec<u8>,
    sum: u8,
    too_long: bool,
}

impl Framer {
    /// Takes one byte; a frame if it completes one.
    pub fn push(&mut self, byte: u8) -> Option<Frame> {
        match self.state {
            State::Between => match byte {
                b'$' => {
                    *self = Self { state: State::Body, ..Self::default() };
                    None
                }
                b'+' => Some(Frame::Ack),
                b'-' => Some(Frame::Nack),
                3 => Some(Frame::Interrupt),
                _ => None,
            },
            State::Body => {
                match byte {
                    b'#' => self.state = State::Checksum,
                    _ if self.body.len() == MAX_BODY => self.too_long = true,
                    _ => {
                        self.sum = self.sum.wrapping_add(byte);
                        self.body.push(byte);
                    }
                }
                None
            }
            State::Checksum => {
                self.state = State::LastDigit(byte);
                None
            }
            State::LastDigit(first) => {
                self.state = State::Between;
                let digit = |b: u8| (b as char).to_digit(16);
                let sum = digit(first).zip(digit(byte)).map(|(a, b)| a * 16 + b);
                let good = sum == Some(u32::from(self.sum)) && !self.too_long && !self.body.is_empty();
                Some(if good { Frame::Packet(std::mem::take(&mut self.body)) } else { Frame::Bad })
            }
        }
    }
}

/// A packet around `body`, which must not need escaping.
pub fn encode(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    let mut packet = Vec::with_capacity(body.len() + 4);
    packet.push(b'$');
    packet.extend_from_slice(body);
    packet.extend_from_slice(format!("#{sum:02x}").as_bytes());
    packet
}

/// Packets that make gdb print `text` on its console.
pub fn console(text: &str) -> Vec<u8> {
    let mut packets = Vec::new();
    for part in text.as_bytes().chunks(MAX_BODY / 4) {
        let hex: String = part.iter().map(|b| format!("{b:02x}")).collect();
        packets.extend(encode(format!("O{hex}").as_bytes()));
    }
    packets
}

/// Keeps a memory read within one answer and within the address space: a longer read is answered short, which the
/// protocol allows. Other packets pass unchanged.
pub fn bounded(body: Vec<u8>) -> Vec<u8> {
    const LONGEST: u64 = (MAX_BODY / 2 - 16) as u64;
    let parse = |text: &str| u64::from_str_radix(text, 16).ok();
    let parts =
        std::str::from_utf8(&body).ok().and_then(|t| t.strip_prefix('m')).and_then(|t| t.split_once(','));
    match parts.and_then(|(at, len)| parse(at).zip(parse(len))) {
        Some((at, len)) => {
            let left = (u64::MAX - at).saturating_add(1);
            format!("m{at:x},{:x}", len.min(LONGEST).min(left)).into_bytes()
        }
        None => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut framer = Framer::default();
        bytes.iter().filter_map(|b| framer.push(*b)).collect()
    }

    #[test]
    fn packets_acks_and_interrupts_are_told_apart() {
        assert_eq!(
            frames(b"+$g#67\x03-x$m0,4#fd"),
            [
                Frame::Ack,
                Frame::Packet(b"g".to_vec()),
                Frame::Interrupt,
                Frame::Nack,
                Frame::Packet(b"m0,4".to_vec()),
            ]
        );
    }

    #[test]
    fn bad_checksum_and_empty_packet_are_bad() {
        assert_eq!(
            frames(b"$g#68$g#zz$#00$g#67"),
            [Frame::Bad, Frame::Bad, Frame::Bad, Frame::Packet(b"g".to_vec())]
        );
    }

    #[test]
    fn too_long_packet_is_bad_and_the_next_is_read() {
        let long = encode(&vec![b'a'; MAX_BODY + 1]);
        assert_eq!(frames(&[&long[..], b"$g#67"].concat()), [Frame::Bad, Frame::Packet(b"g".to_vec())]);
    }

    #[test]
    fn encoded_packet_is_read_back() {
        assert_eq!(frames(&encode(b"vCont;c")), [Frame::Packet(b"vCont;c".to_vec())]);
        assert_eq!(encode(b"OK"), b"$OK#9a");
        assert_eq!(console("A\n"), encode(b"O410a"));
    }

    #[test]
    fn memory_reads_are_bounded() {
        assert_eq!(bounded(b"m0,ffffffffffffffff".to_vec()), b"m0,1ff0");
        assert_eq!(bounded(b"mfffffffffffffff0,40".to_vec()), b"mfffffffffffffff0,10");
        assert_eq!(bounded(b"m1000,4".to_vec()), b"m1000,4");
        assert_eq!(bounded(b"mzz,4".to_vec()), b"mzz,4");
    }
}
