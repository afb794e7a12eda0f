//! A judge that rejects by a rule that tests can see through, and fails on demand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use doorward_detection::{Error, Judge, Judgement, Scores, Signal};
use doorward_engine::InputDomain;

/// Rejects rows whose first value is above 0.5, and calls them label 1.
pub(crate) struct FakeJudge {
    domain: InputDomain,
    behaviour: Mutex<Behaviour>,
    gate: Condvar,
    entered: AtomicUsize,
    batches: Mutex<Vec<usize>>,
    seen: Mutex<Vec<f32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Judges.
    Answer,
    /// Returns an error.
    Fail,
    /// Returns a judgement too few.
    Omit,
    /// Panics.
    Panic,
    /// Waits until told otherwise.
    Wait,
}

/// The score that triggered rows get; it must never reach a client.
pub(crate) const SCORE: f32 = 4.375;

// === impl FakeJudge ===

impl Default for FakeJudge {
    fn default() -> Self {
        Self::of_shape([1, 2, 2])
    }
}

impl FakeJudge {
    /// For rows of this shape, with values from 0 to 1.
    pub(crate) fn of_shape(shape: [usize; 3]) -> Self {
        Self {
            domain: InputDomain {
                shape,
                lower: vec![0.0; shape[0]],
                upper: vec![1.0; shape[0]],
                channels_last: false,
                fp32: true,
            },
            behaviour: Mutex::new(Behaviour::Answer),
            gate: Condvar::new(),
            entered: AtomicUsize::new(0),
            batches: Mutex::new(Vec::new()),
            seen: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().expect("no panic while held") = behaviour;
        self.gate.notify_all();
    }

    /// How many batches have come in, finished or not.
    pub(crate) fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }

    /// Rows of each batch.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.batches.lock().expect("no panic while held").clone()
    }

    /// The rows of the last batch.
    pub(crate) fn seen(&self) -> Vec<f32> {
        self.seen.lock().expect("no panic while held").clone()
    }

    fn pass_gate(&self) -> Behaviour {
        let behaviour = self.behaviour.lock().expect("no panic while held");
        *self
            .gate
            .wait_while(behaviour, |behaviour| *behaviour == Behaviour::Wait)
            .expect("no panic while held")
    }
}

impl Judge for FakeJudge {
    fn domain(&self) -> &InputDomain {
        &self.domain
    }

    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error> {
        let mut judgements: Vec<Judgement> = rows
            .chunks_exact(self.domain.len())
            .map(|row| {
                let rejected = row[0] > 0.5;
                let score = if rejected { SCORE } else { -1.0 };
                let mut scores = Scores::default();
                scores[Signal::Universal] = Some(score);
                let joined = Some(score);
                Judgement { label: usize::from(rejected), rejected, scores, joined }
            })
            .collect();
        *self.seen.lock().expect("no panic while held") = rows.to_vec();
        self.batches.lock().expect("no panic while held").push(judgements.len());
        self.entered.fetch_add(1, Ordering::SeqCst);
        match self.pass_gate() {
            Behaviour::Answer | Behaviour::Wait => {}
            Behaviour::Fail => {
                let cause = candle_core::Error::Msg("as told".to_owned());
                return Err(doorward_engine::Error::from(cause).into());
            }
            Behaviour::Omit => {
                judgements.pop();
            }
            Behaviour::Panic => panic!("as told"),
        }
        Ok(judgements)
    }
}
