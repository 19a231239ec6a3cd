//! `trace pack` and `trace unpack`: a trace in as few bytes as possible, and a trace as a folder of plain files.

use super::export::jsonl;
use super::info::{ending, grouped, header};
use super::{finish, open};
use crate::cmd::json::object;
use anyhow::{Context, Result, bail};
use retrovisor_replay::Trace;
use retrovisor_replay::format::header::present;
use retrovisor_replay::format::pack::pack_file;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// `trace pack`: the same trace, recompressed, to the file `to`.
///
/// # Errors
/// If the trace cannot be read to its end or `to` cannot be written; what `to` was before stays then.
pub fn pack(path: &Path, to: &Path, out: &mut dyn Write) -> Result<()> {
    let trace = open(path)?;
    let size = pack_file(&trace, to)?;
    let (before, after) = (grouped(trace.size()), grouped(size));
    finish(
        writeln!(out, "{}: {before} bytes, {}: {after} bytes", trace.name(), to.display())
            .map_err(Into::into),
    )
}

/// `trace unpack`: header, images and records as files in the new (or empty) folder `to`.
///
/// # Errors
/// If the trace cannot be read to its end, or the folder is not empty or cannot be written.
pub fn unpack(path: &Path, to: &Path, out: &mut dyn Write) -> Result<()> {
    let trace = open(path)?;
    // Before anything is written: a trace that cannot be unpacked leaves no half of a folder.
    let (_, images) = trace.machine()?;
    let name = || to.display().to_string();
    match fs::read_dir(to).map(Iterator::count) {
        Ok(1..) => {
            bail!("{}: the folder is not empty: give a new one", name())
        }
        Ok(_) => {}
        Err(_) => fs::create_dir(to).with_context(name)?,
    }
    write_file(to, "header.json", &mut |f| {
        let mut fields = header(&trace);
        fields.push(("ending", object(ending(trace.ending()))));
        Ok(writeln!(f, "{}", object(fields))?)
    })?;
    for (role, bytes) in present(&images) {
        write_file(to, role.name(), &mut |f| Ok(f.write_all(bytes)?))?;
    }
    write_file(to, "events.jsonl", &mut |f| jsonl(&trace, f))?;
    finish(list(&trace, to, out))
}

fn write_file(folder: &Path, name: &str, write: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = folder.join(name);
    let context = || path.display().to_string();
    let mut f = BufWriter::new(File::create(&path).with_context(context)?);
    write(&mut f)?;
    f.flush().with_context(context)
}

fn list(trace: &Trace, to: &Path, out: &mut dyn Write) -> Result<()> {
    let images: Vec<_> = trace.header().images.iter().map(|i| i.role.name()).collect();
    Ok(writeln!(out, "{}: header.json, events.jsonl, {}", to.display(), images.join(", "))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{shown, trace};
    use super::*;

    #[test]
    fn test_packed_trace_has_the_same_records() {
        let (path, to) = (trace("pack.rvt", true), trace("packed.rvt", false));
        let line = shown(|out| pack(&path, &to, out));
        assert_eq!(line.lines().count(), 1);
        let (before, after) = (open(&path).unwrap(), open(&to).unwrap());
        assert_eq!((before.header(), before.ending()), (after.header(), after.ending()));
        let records = |t: &Trace| t.records().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(records(&before), records(&after));
    }

    #[test]
    fn test_unpack_writes_a_folder_once() {
        let path = trace("unpack.rvt", true);
        let dir = std::env::temp_dir().join(format!("retrovisor-{}-unpacked", std::process::id()));
        shown(|out| unpack(&path, &dir, out));
        let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["events.jsonl", "header.json", "kernel"]);
        assert_eq!(fs::read(dir.join("kernel")).unwrap(), vec![1; 5000]);
        let events = fs::read_to_string(dir.join("events.jsonl")).unwrap();
        assert_eq!(events.lines().count(), 6);
        let e = unpack(&path, &dir, &mut Vec::new()).unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert!(e.to_string().contains("not empty"), "{e}");
    }
}
