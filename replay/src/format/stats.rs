//! What a trace consists of, by kind of record.

use super::TraceError;
use super::reader::Trace;
use super::record::Predictor;
use std::collections::BTreeMap;

/// Records of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KindStats {
    pub count: u64,
    /// Delta-coded bytes before compression.
    pub bytes: u64,
}

/// Counts over a whole trace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// By [`What::kind`](super::record::What::kind).
    pub kinds: BTreeMap<&'static str, KindStats>,
    /// Why the count ends before the trace does, if so.
    pub error: Option<TraceError>,
}

impl Stats {
    /// Counts all records of `trace`, one frame in memory at a time.
    pub fn of(trace: &Trace) -> Self {
        let mut stats = Self::default();
        let mut coded = Vec::new();
        for n in 0.. {
            let frame = match trace.frame(n) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(e) => {
                    stats.error = Some(e);
                    break;
                }
            };
            let mut predictor = Predictor::new(frame.start, trace.config());
            for record in &frame.records {
                coded.clear();
                predictor.put(&mut coded, record);
                let kind = stats.kinds.entry(record.what.kind()).or_default();
                kind.count += 1;
                kind.bytes += coded.len() as u64;
            }
        }
        stats
    }
}
