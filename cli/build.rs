//! Assembles the demo guest (`guest/`) into `$OUT_DIR/rearview.elf`, which the `demo` command embeds.

#[path = "guest/mod.rs"]
mod guest;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("rearview.elf"), guest::build()?)?;
    Ok(())
}
