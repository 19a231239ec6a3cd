//! Where the gdb server listens, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// A place to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GdbAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A text that is no such place.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no address for gdb: give PORT, :PORT, HOST:PORT or unix:PATH")]
pub struct AddressError(String);

impl Default for GdbAddress {
    /// 127.0.0.1:1234
    fn default() -> Self {
        Self::loopback(1234)
    }
}

impl GdbAddress {
    fn loopback(port: u16) -> Self {
        Self::Tcp { host: "127.0.0.1".into(), port }
    }
}

impl FromStr for GdbAddress {
    type Err = AddressError;

    /// Nothing: the default. `PORT`, `:PORT`: on loopback only. `HOST:PORT`, `[V6]:PORT`. A leading `tcp:` is
    /// allowed. `unix:PATH`: a socket in the file system.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.into());
        if text.is_empty() {
            return Ok(Self::default());
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
        let port: u16 = port.parse().map_err(|_| error())?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        match bare.unwrap_or(host) {
            "" => Ok(Self::loopback(port)),
            host if bare.is_none() && host.contains(':') => Err(error()),
            host => Ok(Self::Tcp { host: host.into(), port }),
        }
    }
}

impl fmt::Display for GdbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, AddressError> {
        text.parse::<GdbAddress>().map(|a| a.to_string())
    }

    #[test]
    fn short_forms_mean_loopback() {
        for (text, want) in [
            ("", "127.0.0.1:1234"),
            (":4321", "127.0.0.1:4321"),
            ("4321", "127.0.0.1:4321"),
            ("tcp::1234", "127.0.0.1:1234"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:5", "[::1]:5"),
            ("host.example:99", "host.example:99"),
            ("unix:/tmp/s", "unix:/tmp/s"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["x", ":", ":65536", "host:", "host:port", "::1:5", "unix:", "tcp:", "-1"] {
            assert!(shown(text).is_err(), "{text:?}");
        }
    }
}
