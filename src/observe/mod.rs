//! What Portcullis tells about itself: metrics, the access log, the program log.
//!
//! Nothing in here may slow a request down or fail it. Metrics are cells that one thread writes
//! and the scrape reads; the access log is formatted on the worker and written by a thread of its
//! own; a sink that stalls or fails costs log lines, which are counted, and nothing else.

mod access_log;
mod escape;
mod metrics;
mod program_log;
mod record;

pub use access_log::{AccessLog, LogWriter};
pub use escape::Quoted;
pub use metrics::{
    BackendCells, BackendTotals, CertificateExpiry, ClusterCells, ListenerCells, Metrics, NO_ROUTE,
    RouteCells, SeriesOwner, Shard, TlsFile,
};
pub use program_log::{Throttle, detach_program_log, flush_program_log, start_program_log};
pub use record::{ClientInfo, Record, TlsInfo};

/// What a client speaks with us: the `protocol` of metrics and of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    H2,
}

impl Protocol {
    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Protocol::Http1 => "http1",
            Protocol::H2 => "h2",
        }
    }
}
