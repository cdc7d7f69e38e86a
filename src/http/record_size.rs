//! How much plaintext goes into a TLS record.
//!
//! A client can use nothing of a record before its last byte is there. A full one is twelve TCP
//! segments, more than a fresh connection may have on its way at once (ten, RFC 6928), so its first
//! byte would wait for a second round trip. Sizes therefore begin at one segment and grow by one with
//! each record, as in Go's crypto/tls: the first four fill just the first round trip, and from about
//! 100 KiB on records are full and cost the least. After a pause TCP has forgotten how fast the path
//! is (RFC 5681 §4.1), and sizes begin anew.

use std::time::Duration;

use tokio::time::Instant;

/// The most plaintext in a record (RFC 8446 §5.1).
pub const FULL_BYTES: usize = 16 * 1024;
/// Plaintext that fits a TCP segment with what TLS adds, through tunnels with a small MTU as well.
const SEGMENT_BYTES: usize = 1300;
/// Up to here data stays whole: a head with a small body, or the rest of a larger one.
const WHOLE_BYTES: usize = 4 * 1024;
const PAUSE: Duration = Duration::from_secs(1);

/// The sizes of one connection's records.
#[derive(Debug, Default)]
pub struct RecordSizes {
    /// Segments in the last record that was cut.
    segments: usize,
    /// When data was cut last.
    last: Option<Instant>,
}

impl RecordSizes {
    /// Begins a write of `length` bytes.
    pub fn begin(&mut self, length: usize) {
        if length <= WHOLE_BYTES {
            return;
        }
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last >= PAUSE) {
            self.segments = 0;
        }
        self.last = Some(now);
    }

    /// How many of the `left` bytes of the write go into the next record.
    pub fn next(&mut self, left: usize) -> usize {
        if left <= WHOLE_BYTES {
            return left;
        }
        self.segments = (self.segments + 1).min(FULL_BYTES.div_ceil(SEGMENT_BYTES));
        left.min(FULL_BYTES).min(self.segments * SEGMENT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sizes: &mut RecordSizes, length: usize) -> Vec<usize> {
        sizes.begin(length);
        let (mut records, mut left) = (Vec::new(), length);
        while left > 0 {
            records.push(sizes.next(left));
            left -= records[records.len() - 1];
        }
        records
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_small_data_whole() {
        let mut sizes = RecordSizes::default();
        for length in [1, 1_400, 2_000, WHOLE_BYTES, WHOLE_BYTES] {
            assert_eq!(cut(&mut sizes, length), [length]);
        }
        assert_eq!(cut(&mut sizes, WHOLE_BYTES + 1), [SEGMENT_BYTES, WHOLE_BYTES + 1 - SEGMENT_BYTES]);
    }

    #[tokio::test(start_paused = true)]
    async fn grows_by_a_segment_a_record_to_a_full_one() {
        let mut sizes = RecordSizes::default();
        let records = cut(&mut sizes, 200_000);
        let growing: Vec<usize> = (1..=12).map(|segments| segments * SEGMENT_BYTES).collect();
        assert_eq!(records[..12], growing);
        assert_eq!(
            records[12..],
            [FULL_BYTES, FULL_BYTES, FULL_BYTES, FULL_BYTES, FULL_BYTES, FULL_BYTES, 296]
        );
        assert_eq!(cut(&mut sizes, 40_000), [FULL_BYTES, FULL_BYTES, 40_000 - 2 * FULL_BYTES]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_records_fit_the_first_round_trip() {
        let records = cut(&mut RecordSizes::default(), 100_000);
        assert_eq!(records[..4].iter().sum::<usize>(), 10 * SEGMENT_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn begins_anew_after_a_pause_and_not_before() {
        let mut sizes = RecordSizes::default();
        cut(&mut sizes, 200_000);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(cut(&mut sizes, 20_000)[0], FULL_BYTES);
        tokio::time::advance(PAUSE).await;
        assert_eq!(cut(&mut sizes, 20_000)[0], SEGMENT_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn small_data_does_not_keep_sizes_large() {
        let mut sizes = RecordSizes::default();
        cut(&mut sizes, 200_000);
        tokio::time::advance(PAUSE / 2).await;
        cut(&mut sizes, 100);
        tokio::time::advance(PAUSE / 2).await;
        assert_eq!(cut(&mut sizes, 20_000)[0], SEGMENT_BYTES);
    }
}
