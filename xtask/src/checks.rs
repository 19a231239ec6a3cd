//! Checks of the tree itself: which crate may import which, where `unsafe` may stand, which licences come in, and
//! that gdb is there.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates in import order: each may depend on those before it only.
const ORDER: [&str; 5] =
    ["retrovisor-core", "retrovisor-replay", "retrovisor-debug", "retrovisor-tui", "retrovisor"];

/// Where `unsafe` may stand; each file with a use has a line in docs/unsafe.md. `bench-guest` is guest code: system
/// calls, inline assembly and code written at run time are what it is for.
const UNSAFE_ALLOWED: [&str; 3] = ["core/src/jit/", "core/src/mem/ram.rs", "tests/bench-guest/src/"];

fn metadata(extra: &[&str]) -> Result<String> {
    let out = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(extra)
        .output()?;
    if !out.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// core <- replay <- debug <- tui <- cli, read from the manifests' dependency tables.
pub fn imports() -> Result<()> {
    for (n, package) in ORDER.iter().enumerate() {
        let folder = package.strip_prefix("retrovisor-").unwrap_or("cli");
        let manifest = fs::read_to_string(Path::new(folder).join("Cargo.toml")).context(folder)?;
        for later in &ORDER[n..] {
            let names = |l: &&str| l.starts_with(&format!("{later}.")) || l.starts_with(&format!("{later} "));
            if let Some(line) = manifest.lines().find(names) {
                bail!(
                    "{folder}/Cargo.toml: `{line}` breaks the import rule core <- replay <- debug <- tui <- cli"
                );
            }
        }
    }
    println!("xtask: import rule holds");
    Ok(())
}

/// `unsafe` only where it is allowed, each with a SAFETY reason, and each such file listed in docs/unsafe.md.
pub fn unsafe_list() -> Result<()> {
    let doc = fs::read_to_string("docs/unsafe.md").context("docs/unsafe.md")?;
    let mut files = Vec::new();
    for folder in ["core", "replay", "debug", "tui", "cli", "tests/bench-guest"] {
        rust_files(&Path::new(folder).join("src"), &mut files)?;
    }
    let mut uses = 0;
    for file in files {
        let text = fs::read_to_string(&file)?;
        let name = file.to_string_lossy().into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let mut here = 0;
        for (n, _) in lines.iter().enumerate().filter(|(_, l)| is_unsafe(l)) {
            here += 1;
            if !UNSAFE_ALLOWED.iter().any(|p| name.starts_with(p)) {
                bail!("{name}:{}: unsafe is not allowed here", n + 1);
            }
            let reasoned =
                lines[n.saturating_sub(8)..=n].iter().any(|l| l.contains("SAFETY") || l.contains("# Safety"));
            if !reasoned {
                bail!("{name}:{}: unsafe without a SAFETY reason", n + 1);
            }
        }
        if here > 0 && !doc.contains(name.trim_start_matches("core/src/")) {
            bail!("{name}: its unsafe code is not listed in docs/unsafe.md");
        }
        uses += here;
    }
    println!("xtask: {uses} uses of unsafe, all where allowed, reasoned and listed");
    Ok(())
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|k| code.contains(k))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, out)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// Every dependency offers a licence of deny.toml's list.
pub fn licences() -> Result<()> {
    let deny = fs::read_to_string("deny.toml").context("deny.toml")?;
    let list = deny.lines().find(|l| l.starts_with("allow = [")).context("deny.toml: no licence list")?;
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let json = metadata(&[])?;
    let mut count = 0;
    for value in json.split("\"license\":").skip(1) {
        let Some(expr) = value.strip_prefix('"').and_then(|v| v.split('"').next()) else {
            continue;
        };
        count += 1;
        if !licence_ok(expr, &allowed) {
            bail!("a dependency has the licence `{expr}`, which deny.toml does not allow");
        }
    }
    println!("xtask: {count} packages, all under allowed licences");
    Ok(())
}

/// SPDX: one alternative of an OR must be allowed, all parts of an AND.
fn licence_ok(expr: &str, allowed: &[&str]) -> bool {
    let clean = expr.replace(['(', ')'], "").replace('/', " OR ");
    clean.split(" AND ").all(|part| part.split(" OR ").any(|l| allowed.contains(&l.trim())))
}

/// gdb, installed with the distribution's tools if it can be.
pub fn gdb() -> Result<()> {
    if Command::new("gdb").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Ok(());
    }
    println!("xtask: gdb is missing; installing it with apt-get");
    let _ = Command::new("apt-get").args(["-qq", "update"]).status();
    let done = Command::new("apt-get").args(["-qq", "-y", "install", "gdb"]).status();
    if !done.is_ok_and(|s| s.success()) {
        bail!("gdb is missing and could not be installed: run `apt-get install gdb` as root");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_or_and_and() {
        let allowed = ["MIT", "Apache-2.0", "BSD-3-Clause"];
        assert!(licence_ok("MIT OR GPL-3.0", &allowed));
        assert!(licence_ok("Apache-2.0 AND BSD-3-Clause", &allowed));
        assert!(licence_ok("MIT/Apache-2.0", &allowed));
        assert!(!licence_ok("GPL-3.0", &allowed));
        assert!(!licence_ok("MIT AND GPL-3.0", &allowed));
    }

    #[test]
    fn unsafe_in_comments_does_not_count() {
        assert!(!is_unsafe("// unsafe { }"));
        assert!(is_unsafe("    let x = unsafe { y };"));
    }
}
