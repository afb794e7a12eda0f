//! Leaves an upstream alone that fails again and again.
//!
//! *Closed*: requests go through. After so many failures in a row it is *open* for a while, and
//! requests are answered at once. Then one goes through, as a probe, and keeps it open for the
//! others for as long again; its success closes it. Only what an exchange comes to counts: an
//! upstream that answers with an error status is there. REST and gRPC have one each: they may be
//! different servers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::failed::Failed;
use crate::settings;
use crate::verdict::UpstreamError;

/// The state, shared by all requests.
#[derive(Debug)]
pub(super) struct Breaker {
    /// `None`: always closed.
    settings: Option<settings::Breaker>,
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
    pub(super) fn new(settings: Option<settings::Breaker>) -> Self {
        Self { settings, state: Mutex::new(State::Closed(0)) }
    }

    /// Runs an exchange, if one may go through now.
    pub(super) async fn guard<T>(
        &self,
        exchange: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        self.check()?;
        let reply = exchange.await;
        self.record(reply.is_ok());
        reply
    }

    /// An error if no exchange may go through now. Each that does has to be recorded.
    pub(super) fn check(&self) -> Result<(), Failed> {
        match self.admits(Instant::now()) {
            true => Ok(()),
            false => {
                let cause = "upstream.breaker_failures in a row".to_owned();
                Err(Failed { error: UpstreamError::Open, cause })
            }
        }
    }

    /// The result of an exchange that went through.
    pub(super) fn record(&self, success: bool) {
        self.record_at(success, Instant::now());
    }

    fn admits(&self, now: Instant) -> bool {
        let Some(settings) = self.settings else { return true };
        let mut state = self.lock();
        match *state {
            State::Closed(_) => true,
            State::Open(until) if now < until => false,
            // A probe that is never heard of again leaves the next one its turn.
            State::Open(_) => {
                *state = State::Open(now + settings.pause);
                true
            }
        }
    }

    fn record_at(&self, success: bool, now: Instant) {
        let Some(settings::Breaker { failures, pause }) = self.settings else { return };
        let mut state = self.lock();
        let next = match *state {
            _ if success => State::Closed(0),
            State::Closed(before) if before + 1 < failures.get() => State::Closed(before + 1),
            State::Closed(_) | State::Open(_) => State::Open(now + pause),
        };
        match (*state, next) {
            (State::Closed(_), State::Open(_)) => {
                tracing::warn!(failures, "the upstream fails: not asked for a while");
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
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    fn breaker(failures: u32) -> Breaker {
        let failures = NonZeroU32::new(failures).unwrap();
        Breaker::new(Some(settings::Breaker { failures, pause: PAUSE }))
    }

    const PAUSE: Duration = Duration::from_secs(10);

    #[test]
    fn opens_after_failures_in_a_row_and_closes_after_a_probe() {
        let breaker = breaker(3);
        let start = Instant::now();
        for success in [false, false, true, false, false] {
            assert!(breaker.admits(start));
            breaker.record_at(success, start);
        }
        breaker.record_at(false, start);
        assert!(!breaker.admits(start + PAUSE / 2));
        // One probe a pause, and a failed one begins another.
        let later = start + PAUSE;
        assert!(breaker.admits(later));
        assert!(!breaker.admits(later));
        breaker.record_at(false, later + PAUSE / 2);
        assert!(!breaker.admits(later + PAUSE));
        let later = later + PAUSE * 2;
        assert!(breaker.admits(later));
        breaker.record_at(true, later);
        assert!(breaker.admits(later) && breaker.admits(later));
    }

    #[test]
    fn a_probe_without_an_outcome_does_not_keep_it_open() {
        let breaker = breaker(1);
        let start = Instant::now();
        breaker.record_at(false, start);
        assert!(breaker.admits(start + PAUSE));
        assert!(breaker.admits(start + PAUSE * 2));
    }
}
