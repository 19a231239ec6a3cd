//! Which engine executes the guest, and the translator's switches. Never part of guest state: every choice gives the
//! same run.

use std::str::FromStr;

/// What executes the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The binary translator, with the interpreter for what it does not translate.
    #[default]
    Jit,
    /// The interpreter alone: the reference.
    Interp,
}

impl FromStr for Engine {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "jit" => Ok(Engine::Jit),
            "interp" => Ok(Engine::Interp),
            _ => Err(format!("no engine is called \"{s}\": jit or interp")),
        }
    }
}

macro_rules! switches {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)*) => {
        /// The translator's fast paths, each of which can be switched off to find the one at fault.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct JitOptions { $($(#[$doc])* pub $field: bool,)* }

        impl Default for JitOptions {
            fn default() -> Self {
                Self { $($field: true,)* }
            }
        }

        impl JitOptions {
            /// The switches' names, without the `no-` before them.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Switches the fast path called `name` on or off; false if there is none of that name.
            pub fn set(&mut self, name: &str, on: bool) -> bool {
                match name {
                    $($name => self.$field = on,)*
                    _ => return false,
                }
                true
            }
        }
    };
}
switches! {
    /// Blocks jump to each other directly.
    chain: "chain",
    /// Indirect jumps and returns look their target up without leaving translated code.
    jump_cache: "jump-cache",
    /// Loads and stores look into the TLB in translated code; off: each is a call.
    inline_tlb: "inline-tlb",
    /// Accesses off one base register share one check.
    windows: "windows",
    /// Flags that only a fault could see are recomputed there instead of being saved.
    lazy_flags: "lazy-flags",
    /// Instructions are re-encoded and run on the host; off: each is a call.
    identical: "identical",
    /// Instructions whose undefined results the host happens to define as we do run on it; off: each is a call.
    host_undefined: "host-undefined",
    /// SSE state lives in host registers.
    sse: "sse",
    /// x87 and MMX state lives in host registers.
    x87: "x87",
    /// Instructions on the vCPU itself, CLI and STI among them, work on its fields; off: each is a call.
    system: "system",
    /// REP MOVS and REP STOS inside a page run on the host; off: each is a call.
    rep: "rep",
    /// Translated code that keeps missing is translated again to call out.
    adapt: "adapt",
    /// Blocks are translated for speed when they were found running often; off: at once.
    sample: "sample",
    /// Of blocks translated for speed, those that branch back to their start are loops of host code.
    loops: "loops",
    /// And their lookups try the page they found last first.
    remember: "remember",
}

impl FromStr for JitOptions {
    type Err = String;
    /// A comma-separated list of `no-NAME`.
    fn from_str(s: &str) -> Result<Self, String> {
        let mut o = Self::default();
        for word in s.split(',').filter(|w| !w.is_empty()) {
            if !word.strip_prefix("no-").is_some_and(|n| o.set(n, false)) {
                let all: Vec<String> = Self::NAMES.iter().map(|n| format!("no-{n}")).collect();
                return Err(format!("no translator switch is called \"{word}\": one of {}", all.join(", ")));
            }
        }
        Ok(o)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_switches_are_named_in_the_error() {
        let o: JitOptions = "no-chain,no-sse".parse().unwrap();
        assert_eq!(o, JitOptions { chain: false, sse: false, ..JitOptions::default() });
        assert!("chain".parse::<JitOptions>().unwrap_err().contains("no-inline-tlb"));
        assert!("qemu".parse::<Engine>().unwrap_err().contains("jit or interp"));
    }
}
