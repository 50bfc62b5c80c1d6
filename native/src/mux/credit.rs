//! Job: who may send how much. Two windows per connection, one for each direction.
//! Before: `mux` hands in what packets say and what was moved.
//! After: `mux` asks how much may go now, and when to tell the guest.
//! Rules: counters are modulo 2^32 as on the wire (virtio 1.3 section 5.10.6.3); differences are taken as signed.

use crate::packet::spec::MAX_PAYLOAD;

/// What a queued packet costs a Linux guest's accounting of unread packets, in bytes, generously.
///
/// Linux 7 refuses a packet when `(queued + 1) * SKB_TRUESIZE(0)` exceeds the socket's `buf_alloc`
/// (`virtio_transport_inc_rx_pkt`, net/vmw_vsock/virtio_transport_common.c), and `SKB_TRUESIZE(0)` is 576
/// on x86-64 and arm64. It grows with debugging options, hence the margin.
const PACKET_COST: u32 = 768;

/// The smallest window that a host application can ask for, in bytes: Linux's default for the lower bound
/// (`VSOCK_DEFAULT_BUFFER_MIN_SIZE`, net/vmw_vsock/af_vsock.c). With none at all, the guest could never send.
const MIN_WINDOW: u32 = 128;

/// The window of the guest's socket: what may still be sent to it.
#[derive(Debug, Default)]
pub struct ToGuestCredit {
    /// The guest's `buf_alloc`.
    window: u32,
    /// The guest's `fwd_cnt`.
    taken: u32,
    /// Bytes sent so far.
    sent: u32,
    /// Upper bound of the packets before `mark` that the guest has not read.
    packets_before: u32,
    /// Packets sent since `mark`.
    packets_since: u32,
    /// Value of `sent` that separates the two counts above.
    mark: u32,
}

impl ToGuestCredit {
    /// Takes what a packet of the guest says of its receive window.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.window = buf_alloc;
        self.taken = fwd_cnt;
        // `fwd_cnt` tells bytes, the guest's limit is on packets. Two counts bound the packets from above
        // without a list of them: once all bytes before the mark are read, the newer count becomes the older.
        if signed_distance(self.mark, fwd_cnt) >= 0 {
            let all_read = fwd_cnt == self.sent;
            self.packets_before = if all_read { 0 } else { self.packets_since };
            self.packets_since = 0;
            self.mark = self.sent;
        }
    }

    /// The guest's `buf_alloc`.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// How many bytes may be sent now.
    pub fn bytes(&self) -> u32 {
        let in_flight = signed_distance(self.taken, self.sent).max(0);
        // The window may have shrunk below what is in flight.
        (i64::from(self.window) - in_flight).max(0).try_into().unwrap_or(0)
    }

    /// How many packets may be sent now.
    pub fn packets(&self) -> u32 {
        (self.window / PACKET_COST).max(1).saturating_sub(self.packets_before.saturating_add(self.packets_since))
    }

    /// Notes that `bytes` in `packets` were sent.
    pub fn sent(&mut self, bytes: u32, packets: u32) {
        self.sent = self.sent.wrapping_add(bytes);
        self.packets_since = self.packets_since.saturating_add(packets);
    }
}

/// The window of the host's side: what the guest may still send.
#[derive(Debug)]
pub struct FromGuestCredit {
    /// Our `buf_alloc`, constant once the guest was told.
    window: u32,
    /// Bytes received so far.
    received: u32,
    /// Bytes that the host application's socket took so far, but for what `host::room` holds back: our `fwd_cnt`.
    delivered: u32,
    /// The `fwd_cnt` that the guest was told last.
    told: u32,
    /// Bytes of a message that has not ended, among those received.
    joining: u32,
}

impl FromGuestCredit {
    /// A fresh window of `window` bytes.
    pub fn new(window: u32) -> Self {
        Self { window, received: 0, delivered: 0, told: 0, joining: 0 }
    }

    /// Notes `len` received bytes; `false` if the guest had no credit for them.
    pub fn receive(&mut self, len: u32) -> bool {
        let unread = self.received.wrapping_sub(self.delivered);
        if u64::from(unread) + u64::from(len) > u64::from(self.window) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Our `buf_alloc`.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Makes the window `most` bytes if it is larger, but no smaller than [`MIN_WINDOW`]. To be called before the guest is
    /// told.
    pub fn limit(&mut self, most: u32) {
        self.window = self.window.min(most.max(MIN_WINDOW));
    }

    /// Notes that the last `len` bytes received belong to a message, which they end or not. How much of it there is.
    pub fn join(&mut self, len: u32, complete: bool) -> u32 {
        // A host application that does not receive any more takes a beginning at once: of that, nothing waits for its end.
        let message = self.joining.min(self.unread() - len) + len;
        self.joining = if complete { 0 } else { message };
        message
    }

    /// Notes that the guest may send `len` bytes more, as the host application's socket took as many.
    pub fn deliver(&mut self, len: u32) {
        self.delivered = self.delivered.wrapping_add(len);
    }

    /// Bytes received and not delivered.
    pub fn unread(&self) -> u32 {
        self.received.wrapping_sub(self.delivered)
    }

    /// Whether the guest should be told now, `guest_window` being its own `buf_alloc`.
    ///
    /// Linux sends at most the smaller of the two windows (`virtio_transport_get_credit`), so it is that one
    /// whose rest counts: a guest with a small window stalls long before ours is used up. It is told when
    /// no more than half of the window or one full packet is left, and then in steps worth a packet, or when
    /// nothing is unread but a message whose end has not come: it may be the credit for that which is missing.
    pub fn update_due(&self, guest_window: u32) -> bool {
        let window = self.window.min(guest_window);
        let news = self.delivered.wrapping_sub(self.told);
        let left = window.saturating_sub(self.received.wrapping_sub(self.told));
        news > 0 && left <= (window / 2).max(MAX_PAYLOAD) && (self.unread() == self.joining || news >= window / 4)
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to the guest, which learns them thereby.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.delivered;
        (self.window, self.delivered)
    }
}

/// How far `to` lies ahead of `from`, both modulo 2^32; negative if it lies behind.
fn signed_distance(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn window_that_shrinks_below_what_is_in_flight_gives_no_credit() {
        let mut credit = ToGuestCredit::default();
        credit.update(1000, 0);
        credit.sent(800, 1);
        credit.update(500, 0);
        assert_eq!(credit.bytes(), 0);
        credit.update(500, 800);
        assert_eq!(credit.bytes(), 500);
    }

    #[test]
    fn count_of_unread_packets_stays_below_the_limit_of_linux_7() {
        let mut credit = ToGuestCredit::default();
        credit.update(256 * 1024, 0);
        let mut sent = 0_u32;
        while credit.packets() > 0 {
            credit.sent(1, 1);
            sent += 1;
        }
        assert!((300..455).contains(&sent), "{sent}");
        credit.update(256 * 1024, sent);
        assert_eq!(credit.packets(), 256 * 1024 / PACKET_COST);
    }

    #[test]
    fn guest_with_a_small_window_is_told_before_it_stalls() {
        let mut credit = FromGuestCredit::new(256 * 1024);
        assert!(credit.receive(4096));
        credit.deliver(4096);
        assert!(credit.update_due(8192));
        assert!(!credit.update_due(256 * 1024));
    }

    #[test]
    fn wish_for_a_window_makes_it_no_larger_and_never_too_small_to_send() {
        for (own, wanted, window) in [(1000, 500, 500), (1000, 2000, 1000), (1000, 0, MIN_WINDOW), (50, 0, 50)] {
            let mut credit = FromGuestCredit::new(own);
            credit.limit(wanted);
            assert_eq!(credit.tell().0, window);
        }
    }

    proptest! {
        /// Whatever the windows and the pieces, a guest that uses up its credit is told of new one
        /// once everything is delivered: no deadlock.
        #[test]
        fn guest_without_credit_is_always_told(own in 1_u32..1 << 20, guest in 1_u32..1 << 20, pieces in proptest::collection::vec(1_u32..65536, 1..40), start in any::<u32>()) {
            let mut credit = FromGuestCredit { window: own, received: start, delivered: start, told: start, joining: 0 };
            for piece in pieces {
                let in_flight = credit.received.wrapping_sub(credit.told);
                let len = piece.min(own.min(guest).saturating_sub(in_flight));
                prop_assert!(credit.receive(len));
                credit.deliver(len);
                if credit.update_due(guest) { credit.tell(); }
                prop_assert!(own.min(guest) > credit.received.wrapping_sub(credit.told), "stalled");
            }
        }

        /// The bound on unread packets is never below the truth.
        #[test]
        fn packet_bound_holds(ops in proptest::collection::vec((1_u32..5000, 0_usize..8), 1..400), start in any::<u32>()) {
            let mut credit = ToGuestCredit { taken: start, sent: start, mark: start, ..ToGuestCredit::default() };
            credit.update(256 * 1024, start);
            let mut unread = std::collections::VecDeque::new();
            let (mut sent, mut taken) = (start, start);
            for (len, reads) in ops {
                if credit.packets() > 0 && credit.bytes() >= len {
                    credit.sent(len, 1);
                    sent = sent.wrapping_add(len);
                    unread.push_back(len);
                }
                for _ in 0..reads {
                    if let Some(len) = unread.pop_front() { taken = taken.wrapping_add(len); }
                }
                credit.update(256 * 1024, taken);
                let bound = credit.packets_before + credit.packets_since;
                prop_assert!(bound as usize >= unread.len());
                prop_assert!(credit.bytes() <= 256 * 1024);
            }
            let _ = sent;
        }
    }
}
