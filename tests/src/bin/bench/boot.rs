//! Debian's kernels to their init under each peer.

use crate::guest::Files;
use crate::options::Options;
use crate::peers::Peer;
use crate::run::{self, median};
use crate::table::{row, short};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;

const DEFAULT: [Peer; 3] = [Peer::Jit, Peer::Record, Peer::Tcg];

/// Says that it is there, in the benchmark's words, and ends.
const INIT: &str = "#!/bin/sh\necho ready\necho done\nexec /bin/busybox poweroff -f\n";

/// Prints the seconds from the start of the process to the first line of init. False if a boot failed.
pub fn boot(o: &Options) -> Result<bool, String> {
    let files = Files::new()?;
    let (peers, missing): (Vec<Peer>, Vec<Peer>) =
        o.peers(&DEFAULT).into_iter().partition(|p| p.missing(o).is_none());
    missing.iter().filter_map(|p| p.missing(o)).for_each(|why| println!("{why}"));
    println!("\nseconds to init, bzImage, 256 MiB; medians of {}", o.reps);
    row("kernel", peers.iter().map(|p| p.name().to_owned()));
    let mut good = true;
    for kernel in Kernel::ALL {
        let image = guests::busybox(kernel.arch()).map_err(|e| e.to_string())?;
        let b = files.boot_with(kernel, &initramfs::with_init(&image, INIT), o)?;
        let mut cells = Vec::new();
        for peer in &peers {
            eprintln!("bench: {kernel:?} under {}", peer.name());
            let mut seconds = Vec::new();
            for _ in 0..o.reps {
                let (run, done) = run::run(&mut peer.command(&b, o), o);
                good &= crate::suite::report(*peer, &run, done);
                seconds.extend(run.ready);
            }
            cells.push(short(median(&seconds)));
        }
        row(&format!("{kernel:?}"), cells);
    }
    Ok(good)
}
