//! Leaves an upstream alone that fails again and again.
//!
//! *Closed*: requests go through. After so many failures in a row it is *open* for a while, and requests
//! are answered at once. Then one goes through, as a probe, and keeps it open for the others for as long
//! again; its success closes it. Only what an exchange comes to counts: an upstream that answers with an
//! error status is there.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state, shared by all requests.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: NonZeroU32,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many failures in a row.
    Closed(u32),
    /// Nothing goes through before then.
    Open(Instant),
}

// === impl Breaker ===

impl Breaker {
    pub(super) fn new(failures: NonZeroU32, pause: Duration) -> Self {
        Self { failures, pause, state: Mutex::new(State::Closed(0)) }
    }

    /// Whether a request may go through now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match *state {
            State::Closed(_) => true,
            State::Open(until) if now < until => false,
            // A probe that is never heard of again leaves the next one its turn.
            State::Open(_) => {
                *state = State::Open(now + self.pause);
                true
            }
        }
    }

    /// What a request that went through came to.
    pub(super) fn record(&self, success: bool, now: Instant) {
        let mut state = self.lock();
        let next = match *state {
            _ if success => State::Closed(0),
            State::Closed(before) if before + 1 < self.failures.get() => State::Closed(before + 1),
            State::Closed(_) | State::Open(_) => State::Open(now + self.pause),
        };
        match (*state, next) {
            (State::Closed(_), State::Open(_)) => {
                tracing::warn!(
                    failures = self.failures,
                    "the upstream fails: not asked for a while"
                );
            }
            (State::Open(_), State::Closed(_)) => tracing::info!("the upstream answers again"),
            _ => {}
        }
        *state = next;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Always one whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    #[test]
    fn opens_after_failures_in_a_row_and_closes_after_a_probe() {
        let breaker = Breaker::new(NonZeroU32::new(3).unwrap(), PAUSE);
        let start = Instant::now();
        for success in [false, false, true, false, false] {
            assert!(breaker.admits(start));
            breaker.record(success, start);
        }
        breaker.record(false, start);
        assert!(!breaker.admits(start + PAUSE / 2));
        // One probe a pause, and a failed one begins another.
        let later = start + PAUSE;
        assert!(breaker.admits(later));
        assert!(!breaker.admits(later));
        breaker.record(false, later + PAUSE / 2);
        assert!(!breaker.admits(later + PAUSE));
        let later = later + PAUSE * 2;
        assert!(breaker.admits(later));
        breaker.record(true, later);
        assert!(breaker.admits(later) && breaker.admits(later));
    }

    #[test]
    fn a_probe_without_an_outcome_does_not_keep_it_open() {
        let breaker = Breaker::new(NonZeroU32::MIN, PAUSE);
        let start = Instant::now();
        breaker.record(false, start);
        assert!(breaker.admits(start + PAUSE));
        assert!(breaker.admits(start + PAUSE * 2));
    }
}
