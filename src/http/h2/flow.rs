//! Flow control: how much each end may send (RFC 9113 §5.2 and §6.9).

use super::frame::MAX_31;

/// A window would be larger than 2^31−1, or more came than it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// What we may still send.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i64);

impl SendWindow {
    pub(super) fn new(size: u32) -> Self {
        SendWindow(i64::from(size))
    }

    /// 0 also where the peer has made it smaller than what is on its way already (§6.9.2).
    pub(super) fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Takes what was sent, at most what is available.
    pub(super) fn spend(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 -= signed(bytes);
    }

    /// By a WINDOW_UPDATE, or by what the peer's SETTINGS change.
    pub(super) fn grow(&mut self, by: i64) -> Result<(), Overflow> {
        self.0 += by;
        if self.0 > i64::from(MAX_31) { Err(Overflow) } else { Ok(()) }
    }
}

/// What the peer may still send, and what of that it is to get back.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    /// What it is to be while nothing waits to be consumed.
    size: u32,
    left: i64,
    /// Consumed, and not given back yet.
    owed: usize,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        ReceiveWindow { size, left: i64::from(size), owed: 0 }
    }

    /// Counts what came, padding and all.
    pub(super) fn receive(&mut self, bytes: usize) -> Result<(), Overflow> {
        self.left -= signed(bytes);
        if self.left < 0 { Err(Overflow) } else { Ok(()) }
    }

    /// Counts what was consumed; returns what to give back, once that is worth a frame.
    pub(super) fn release(&mut self, bytes: usize) -> Option<u32> {
        self.owed += bytes;
        if self.owed == 0 || self.owed < self.size as usize / 2 {
            return None;
        }
        // Where the window was made smaller, the rest is not given back.
        let back = signed(self.owed).min(i64::from(self.size) - self.left);
        self.owed = 0;
        let back = u32::try_from(back).ok().filter(|back| *back > 0)?;
        self.left += i64::from(back);
        Some(back)
    }

    /// Another size from now on; what is on its way already counts (§6.9.2).
    pub(super) fn resize(&mut self, size: u32) {
        self.left += i64::from(size) - i64::from(self.size);
        self.size = size;
    }

    /// Another size to which the peer is brought by what it gets back, now or later.
    pub(super) fn aim_at(&mut self, size: u32) -> Option<u32> {
        self.size = size;
        self.release(0).or_else(|| {
            let more = u32::try_from(i64::from(size) - self.left).ok().filter(|more| *more > 0)?;
            self.left += i64::from(more);
            Some(more)
        })
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_may_be_below_zero_and_not_above_its_end() {
        let mut window = SendWindow::new(10);
        window.spend(10);
        assert_eq!(window.available(), 0);
        window.grow(-20).unwrap();
        assert_eq!(window.available(), 0);
        window.grow(21).unwrap();
        assert_eq!(window.available(), 1);
        assert_eq!(window.grow(i64::from(MAX_31) - 1), Ok(()));
        assert_eq!(window.grow(1), Err(Overflow));
    }

    #[test]
    fn a_receive_window_takes_just_what_it_holds() {
        for (bytes, verdict) in [(0, Ok(())), (9, Ok(())), (10, Ok(())), (11, Err(Overflow))] {
            assert_eq!(ReceiveWindow::new(10).receive(bytes), verdict, "{bytes}");
        }
    }

    #[test]
    fn gives_back_half_a_window_at_a_time_and_in_the_end_all() {
        let mut window = ReceiveWindow::new(10);
        window.receive(10).unwrap();
        assert_eq!(window.release(4), None);
        assert_eq!(window.release(1), Some(5));
        assert_eq!(window.release(5), Some(5));
        assert_eq!(window.receive(10), Ok(()));
        assert_eq!(window.receive(1), Err(Overflow));
        let mut smallest = ReceiveWindow::new(1);
        smallest.receive(1).unwrap();
        assert_eq!((smallest.release(0), smallest.release(1)), (None, Some(1)));
    }

    #[test]
    fn a_smaller_size_counts_what_is_on_its_way() {
        let mut window = ReceiveWindow::new(100);
        window.receive(60).unwrap();
        window.resize(50);
        assert_eq!(window.receive(1), Err(Overflow));
        let mut window = ReceiveWindow::new(100);
        window.receive(60).unwrap();
        window.resize(50);
        assert_eq!(window.release(60), Some(60));
        assert_eq!(window.receive(50), Ok(()));
    }

    #[test]
    fn a_peer_is_brought_to_a_larger_size_at_once_and_to_a_smaller_one_by_and_by() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.aim_at(150), Some(50));
        assert_eq!(window.aim_at(20), None);
        window.receive(140).unwrap();
        assert_eq!(window.release(140), Some(10));
        assert_eq!((window.receive(20), window.receive(1)), (Ok(()), Err(Overflow)));
    }
}
