//! The work on a program's steps before it runs: drops, joins, plans.

use crate::operators::Fusible;
use crate::step::Step;

/// The steps whose output somebody needs.
pub(super) fn drop_unused(steps: &mut Vec<Step>, slots: usize, output: usize) {
    let mut needed = vec![false; slots];
    needed[output] = true;
    for step in steps.iter().rev() {
        if needed[step.output] {
            step.inputs.iter().for_each(|&slot| needed[slot] = true);
        }
    }
    steps.retain(|step| needed[step.output]);
}

/// Joins steps with the one before, or else with the one after, and leaves away those that pass on
/// what they get.
///
/// One pass in order: a step is first offered to what computes its input; one that could not be
/// joined there waits for its only reader.
pub(super) fn fuse(steps: Vec<Step>, slots: usize, output: &mut usize) -> Vec<Step> {
    let mut slots = Slots::new(&steps, slots, *output);
    let mut fused: Vec<Option<Step>> = Vec::with_capacity(steps.len());
    for mut step in steps {
        step.inputs.iter_mut().for_each(|slot| *slot = slots.same[*slot]);
        if step.is_identity() {
            slots.pass_on(&step);
            continue;
        }
        if let &[slot] = step.inputs.as_slice()
            && slots.readers[slot] == 1
            && let Some(index) = slots.producers[slot]
            && let Some(producer) = &mut fused[index]
        {
            if let Some(next) = step.operator.fusible()
                && let Some(joined) = producer.operator.followed_by(&next)
            {
                producer.operator = joined;
                producer.output = step.output;
                slots.producers[step.output] = Some(index);
                if producer.is_identity() {
                    slots.pass_on(producer);
                    fused[index] = None;
                }
                continue;
            }
            if let Some(Fusible::Affine(affine)) = producer.operator.fusible()
                && let Some(joined) = step.operator.preceded_by(affine)
            {
                step.operator = joined;
                step.inputs = std::mem::take(&mut producer.inputs);
                fused[index] = None;
            }
        }
        slots.producers[step.output] = Some(fused.len());
        fused.push(Some(step));
    }
    *output = slots.same[*output];
    fused.into_iter().flatten().collect()
}

/// The state of the slots in a pass of [`fuse`].
struct Slots {
    /// Number of steps that read a slot; whoever asked for the output counts as one.
    readers: Vec<usize>,
    /// Index of the step that writes a slot.
    producers: Vec<Option<usize>>,
    /// The slot that holds the values of a slot whose identity was left away.
    same: Vec<usize>,
}

// === impl Slots ===

impl Slots {
    fn new(steps: &[Step], slots: usize, output: usize) -> Self {
        let mut readers = vec![0; slots];
        steps.iter().flat_map(|step| &step.inputs).for_each(|&slot| readers[slot] += 1);
        readers[output] += 1;
        Self { readers, producers: vec![None; slots], same: (0..slots).collect() }
    }

    /// Has the readers of an identity read what it reads.
    fn pass_on(&mut self, identity: &Step) {
        let from = identity.inputs[0];
        self.readers[from] += self.readers[identity.output];
        self.readers[from] -= 1;
        self.same[identity.output] = from;
    }
}

/// Notes with every step which slots no later step reads.
pub(super) fn plan_liveness(steps: &mut [Step], slots: usize, output: usize) {
    let mut seen = vec![false; slots];
    seen[output] = true;
    for step in steps.iter_mut().rev() {
        for &slot in &step.inputs {
            if !std::mem::replace(&mut seen[slot], true) {
                step.last_uses.push(slot);
            }
        }
    }
}

/// Returns for each slot whether a reverse pass needs its value of the forward pass.
pub(super) fn plan_saved(steps: &[Step], slots: usize, output: usize) -> Vec<bool> {
    let mut saved = vec![false; slots];
    saved[output] = true;
    for step in steps {
        let saves = step.operator.saves();
        saved[step.output] |= saves.output;
        if saves.inputs {
            step.inputs.iter().for_each(|&slot| saved[slot] = true);
        }
    }
    saved
}
