//! The header: what can be read without anything else of the file. Magic, version, machine description, and the
//! images' names, sizes and digests. It names nothing of the host it was made on.

use super::machine::{get_machine, put_machine};
use super::varint::{Cursor, Malformed, put, put_bytes};
use super::{MAGIC, MAX_HEADER, MAX_IMAGES, MAX_STRING, PREAMBLE, Problem, VERSION};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use xxhash_rust::xxh3::xxh3_128;

/// What an embedded image is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Kernel,
    Initrd,
    Bios,
}

impl Role {
    const ALL: [(u8, Role); 3] = [(0, Role::Kernel), (1, Role::Initrd), (2, Role::Bios)];

    /// Name as the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
            Role::Bios => "bios",
        }
    }
}

/// One image of the machine. Images with equal digests share their bytes in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageInfo {
    pub role: Role,
    /// Bytes.
    pub size: u64,
    /// XXH3-128 of the bytes.
    pub digest: u128,
}

/// A trace's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The program that wrote the trace, with its version.
    pub creator: String,
    pub machine: MachineConfig,
    pub cmdline: String,
    pub kernel_name: String,
    pub images: Vec<ImageInfo>,
}

/// Bytes of all images together, as far as that can be told.
pub fn total_size(images: &[ImageInfo]) -> u64 {
    images.iter().fold(0, |sum, i| sum.saturating_add(i.size))
}

/// The images present, with their roles.
pub fn present(images: &Images) -> Vec<(Role, &[u8])> {
    let Images { kernel, initrd, cmdline: _, kernel_name: _, bios } = images;
    let all = [(Role::Kernel, kernel), (Role::Initrd, initrd), (Role::Bios, bios)];
    all.into_iter().filter_map(|(role, bytes)| Some((role, bytes.as_deref()?))).collect()
}

impl Header {
    /// The header of a recording of this machine.
    pub fn of(machine: &MachineConfig, images: &Images) -> Self {
        let info = |(role, bytes): (Role, &[u8])| ImageInfo {
            role,
            size: bytes.len() as u64,
            digest: xxh3_128(bytes),
        };
        Self {
            creator: concat!("retrovisor ", env!("CARGO_PKG_VERSION")).to_owned(),
            machine: machine.clone(),
            cmdline: images.cmdline.clone(),
            kernel_name: images.kernel_name.clone(),
            images: present(images).into_iter().map(info).collect(),
        }
    }

    /// For each image, the first one with the same bytes: the number its pieces are stored under.
    pub fn stored_as(&self, n: usize) -> usize {
        let same =
            |i: &ImageInfo| self.images.get(n).is_some_and(|x| (x.digest, x.size) == (i.digest, i.size));
        self.images.iter().position(same).unwrap_or(n)
    }

    /// The whole header as bytes, preamble included.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { creator, machine, cmdline, kernel_name, images } = self;
        let mut body = Vec::new();
        put_bytes(&mut body, creator.as_bytes());
        put_machine(&mut body, machine);
        put_bytes(&mut body, cmdline.as_bytes());
        put_bytes(&mut body, kernel_name.as_bytes());
        put(&mut body, images.len() as u64);
        for ImageInfo { role, size, digest } in images {
            body.push(Role::ALL.iter().find(|r| r.1 == *role).map_or(0, |r| r.0));
            put(&mut body, *size);
            body.extend_from_slice(&digest.to_le_bytes());
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads the preamble: the body's length and checksum. `bytes` is the beginning of the file.
    pub fn preamble(bytes: &[u8]) -> Result<(u32, u32), Problem> {
        let bytes = &bytes[..bytes.len().min(PREAMBLE as usize)];
        let magic = bytes.len().min(MAGIC.len());
        if bytes.is_empty() {
            return Err(Problem::Empty);
        }
        if bytes[..magic] != MAGIC[..magic] {
            return Err(Problem::NotATrace);
        }
        let mut c = Cursor::new(bytes);
        let cut = |_| Problem::CutHeader;
        c.array::<4>().map_err(cut)?;
        let found = c.u32().map_err(cut)?;
        match found {
            VERSION => {}
            1..VERSION => return Err(Problem::OldVersion { found }),
            _ => return Err(Problem::Version { found }),
        }
        let (len, crc) = (c.u32().map_err(cut)?, c.u32().map_err(cut)?);
        if len > MAX_HEADER {
            return Err(Problem::Header(format!("it claims {len} bytes")));
        }
        Ok((len, crc))
    }

    /// Reads the body, whose checksum the preamble gave.
    pub fn from_body(body: &[u8], crc: u32) -> Result<Self, Problem> {
        if crc32fast::hash(body) != crc {
            return Err(Problem::Header("its checksum differs".to_owned()));
        }
        Self::parse(body).map_err(|why| Problem::Header(why.to_owned()))
    }

    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(body);
        let creator = c.string(256)?;
        let machine = get_machine(&mut c)?;
        let cmdline = c.string(MAX_STRING)?;
        let kernel_name = c.string(MAX_STRING)?;
        let mut images: Vec<ImageInfo> = Vec::new();
        for _ in 0..c.number()? {
            let image = get_image(&mut c)?;
            if images.iter().any(|i| i.role == image.role) {
                return Err("an image is listed twice");
            }
            images.push(image);
        }
        if total_size(&images) > MAX_IMAGES {
            return Err("its images are too large");
        }
        if !c.is_empty() {
            return Err("it is longer than its fields");
        }
        Ok(Self { creator, machine, cmdline, kernel_name, images })
    }
}

fn get_image(c: &mut Cursor<'_>) -> Result<ImageInfo, Malformed> {
    let code = c.u8()?;
    let role = Role::ALL.iter().find(|r| r.0 == code).ok_or("an image's role is unknown")?.1;
    let size = c.number()?;
    Ok(ImageInfo { role, size, digest: c.u128()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> Header {
        let images = Images {
            kernel: Some(vec![1; 100]),
            initrd: Some(vec![2; 50]),
            cmdline: "console=ttyS0 — ünïcode".into(),
            kernel_name: "vmlinuz".into(),
            bios: Some(vec![1; 100]),
        };
        Header::of(&MachineConfig::default(), &images)
    }

    fn parse(bytes: &[u8]) -> Result<Header, Problem> {
        let (len, crc) = Header::preamble(bytes)?;
        let body = bytes.get(16..16 + len as usize).ok_or(Problem::CutHeader)?;
        Header::from_body(body, crc)
    }

    #[test]
    fn test_header_round_trips() {
        assert_eq!(parse(&header().to_bytes()).unwrap(), header())
    }

    #[test]
    fn test_equal_images_are_stored_once() {
        let h = header();
        assert_eq!([0, 1, 2].map(|n| h.stored_as(n)), [0, 1, 0]);
    }

    #[test]
    fn test_header_cut_anywhere_returns_error() {
        let bytes = header().to_bytes();
        assert_eq!(parse(&[]), Err(Problem::Empty));
        for n in 1..bytes.len() {
            assert_eq!(parse(&bytes[..n]), Err(Problem::CutHeader), "{n}");
        }
    }

    #[test]
    fn test_unknown_version_is_named() {
        let mut bytes = header().to_bytes();
        bytes[4..8].copy_from_slice(&9u32.to_le_bytes());
        let e = parse(&bytes).unwrap_err();
        assert_eq!(e, Problem::Version { found: 9 });
        assert!(e.to_string().contains("version 9") && e.to_string().contains("version 2"));
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        let e = parse(&bytes).unwrap_err();
        assert_eq!(e, Problem::OldVersion { found: 1 });
        assert!(
            e.to_string().starts_with("was written by an older version") && !e.to_string().contains('\n')
        );
    }

    #[test]
    fn test_header_hostile_returns_error() {
        let good = header().to_bytes();
        assert_eq!(parse(b"hello, world, this is text"), Err(Problem::NotATrace));
        let mut huge = good.clone();
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(parse(&huge), Err(Problem::Header(_))));
        let mut flipped = good.clone();
        flipped[40] ^= 1;
        assert!(matches!(parse(&flipped), Err(Problem::Header(_))));
    }
}
