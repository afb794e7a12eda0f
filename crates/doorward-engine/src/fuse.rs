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

/// Joins steps with the one before, or else with the one after.
///
/// One pass in order: a step is first offered to what computes its input; one that could not be
/// joined there waits for its only reader. Another pass, once identities are left away, finds what
/// they stood between; to leave them away in the first would round some affines in another order.
pub(super) fn fuse(steps: Vec<Step>, slots: usize, output: usize) -> Vec<Step> {
    let mut readers = vec![0usize; slots];
    steps.iter().flat_map(|step| &step.inputs).for_each(|&slot| readers[slot] += 1);
    readers[output] += 1;
    let mut fused: Vec<Option<Step>> = Vec::with_capacity(steps.len());
    let mut producers: Vec<Option<usize>> = vec![None; slots];
    for mut step in steps {
        if let &[slot] = step.inputs.as_slice()
            && readers[slot] == 1
            && let Some(index) = producers[slot]
            && let Some(producer) = &mut fused[index]
        {
            if let Some(next) = step.operator.fusible()
                && let Some(joined) = producer.operator.followed_by(&next)
            {
                producer.operator = joined;
                producer.output = step.output;
                producers[step.output] = Some(index);
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
        producers[step.output] = Some(fused.len());
        fused.push(Some(step));
    }
    fused.into_iter().flatten().collect()
}

/// Leaves steps away that pass on what they get.
pub(super) fn drop_identities(steps: &mut Vec<Step>, slots: usize, output: &mut usize) {
    let mut same: Vec<usize> = (0..slots).collect();
    steps.retain_mut(|step| {
        step.inputs.iter_mut().for_each(|slot| *slot = same[*slot]);
        let is_identity = step.operator.is_identity();
        if is_identity {
            same[step.output] = step.inputs[0];
        }
        !is_identity
    });
    *output = same[*output];
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
