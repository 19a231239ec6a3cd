//! A test that fails keeps its run: the trace is written while the panic unwinds, and one line says how to replay it.

use super::Guest;
use std::env;
use std::path::{Path, PathBuf};

/// The directory traces of failed tests go to, if it is set.
pub const DIRECTORY: &str = "RETROVISOR_TRACES";

/// The name of the test this thread runs: the test harness gives it to the thread.
pub fn test_name() -> String {
    let thread = std::thread::current();
    let program = || env::args().next().and_then(|a| Some(Path::new(&a).file_stem()?.to_str()?.to_owned()));
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => program().unwrap_or_else(|| "guest".into()),
    }
}

/// `name` as part of a file's name.
fn file_name(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    name.replace("::", "-").chars().map(kept).collect()
}

/// Where the trace of a failed test goes.
fn directory() -> PathBuf {
    if let Some(dir) = env::var_os(DIRECTORY) {
        return dir.into();
    }
    // A test program stands in target/PROFILE/deps.
    let program = env::current_exe().unwrap_or_default();
    let target = program
        .ancestors()
        .nth(3)
        .filter(|_| program.parent().and_then(Path::file_name).is_some_and(|name| name == "deps"));
    let target = target.map(Path::to_owned).or_else(|| env::var_os("CARGO_TARGET_DIR").map(PathBuf::from));
    target.unwrap_or_else(env::temp_dir).join("retrovisor")
}

impl Guest {
    /// Writes the trace of a failed test and says how to replay it, in one line.
    fn keep(&mut self) -> String {
        let (at, name) = (self.icount(), self.name.clone());
        let path = match &self.trace {
            Some(path) => Ok(path.clone()),
            None => {
                let dir = directory();
                let path = dir.join(format!("{}.rvt", file_name(&name)));
                let made = std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()));
                made.and_then(|()| self.save(&path).map_err(|e| e.to_string())).map(|()| path)
            }
        };
        match path {
            Ok(path) => format!(
                "retrovisor: {name} failed at instruction {at}; to look: retrovisor replay {} --gdb --freeze, \
                 then in gdb: monitor seek {at}",
                path.display()
            ),
            Err(e) => {
                format!("retrovisor: {name} failed at instruction {at}; its run could not be kept: {e}")
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.keep());
        }
    }
}
