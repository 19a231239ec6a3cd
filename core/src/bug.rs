//! Internal bugs. `bug!()` is the only sanctioned panic: it marks a state no guest, file or packet can reach.

/// Reports an internal bug: a broken invariant of Retrovisor itself, never something a guest or file can cause.
#[macro_export]
macro_rules! bug {
    ($($arg:tt)*) => {
        panic!("internal bug at {}:{}: {}", file!(), line!(), format_args!($($arg)*))
    };
}
