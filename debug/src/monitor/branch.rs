//! Commands about branches: runs that went on in another way from a point of the past, and keeping one as a trace.

use super::time::NONE;
use super::{Context, Error, Output, args, no_arguments};
use crate::session::Resume;
use retrovisor_replay::{BranchInfo, ExitReason};
use std::path::Path;

pub const MORE: &str = "A branch begins with the run as it was up to here; what the run was is kept as the branch it was. Whoever\n\
     writes memory or registers in the past begins one, too. In the replay of a trace no inputs come on it.\n";

/// `branch [N]`
pub fn branch(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let timeline = ctx.timeline.as_deref().ok_or_else(|| Error::Nothing(NONE.into()))?;
    let id = match args {
        [] if timeline.is_live() => {
            return Err(Error::Nothing("this is the newest point: go back first, then branch".into()));
        }
        [] => None,
        [n] => Some(known(&timeline.branches(ctx.machine.vm()), n)?),
        _ => return Err("one number, or none, is needed".into()),
    };
    ctx.go = Some(Resume::Branch { id });
    Ok(String::new())
}

/// The number of a branch there is.
fn known(all: &[BranchInfo], text: &str) -> Result<usize, Error> {
    let id = args::number(text).and_then(|n| usize::try_from(n).ok());
    let found = all.iter().find(|b| Some(b.id) == id).map(|b| b.id);
    found.ok_or_else(|| Error::Nothing(format!("there is no branch {text}: `branches` lists them")))
}

/// `branches`
pub fn branches(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let timeline = ctx.timeline.as_deref().ok_or_else(|| Error::Nothing(NONE.into()))?;
    Ok(timeline.branches(ctx.machine.vm()).iter().map(line).collect())
}

fn line(b: &BranchInfo) -> String {
    let here = if b.current { '*' } else { ' ' };
    let from = match b.parent {
        Some((parent, at)) => format!("from branch {parent} at icount {at}"),
        None => "from power-on".to_owned(),
    };
    format!("{here} {:<3} {from}, to icount {}\n", b.id, b.end.icount)
}

pub const SAVE_MORE: &str = "Writes the branch the machine is on, from power-on to its newest point, as a trace: a run nobody recorded is kept\n\
     all the same. FILE is where retrovisor runs; a trace there is replaced, anything else is not.\n";

/// `save FILE`
pub fn save(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let [file] = args else { return Err("the name of one file is needed".into()) };
    let timeline = ctx.timeline.as_deref_mut().ok_or_else(|| Error::Nothing(NONE.into()))?;
    let saved = timeline.save(ctx.machine.vm_mut(), Path::new(file), ExitReason::Quit);
    saved.map_err(|e| Error::Nothing(e.to_string()))?;
    Ok(format!("saved: `retrovisor replay {file} --gdb --freeze` goes on from it\n"))
}

/// `unbranch N`
pub fn unbranch(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let timeline = ctx.timeline.as_deref_mut().ok_or_else(|| Error::Nothing(NONE.into()))?;
    let [text] = args else { return Err("the number of a branch is needed".into()) };
    let id = known(&timeline.branches(ctx.machine.vm()), text)?;
    timeline.drop_branch(id).map_err(|e| Error::Nothing(e.to_string()))?;
    Ok(format!("branch {id} is gone\n"))
}
