//! Many images, scored some at a time.

use doorward_engine::rows;
use doorward_images::Images;

use crate::Error;
use crate::row::RowSignals;
use crate::rule::Needs;
use crate::scorer::Scorer;

/// The signals of the images at `indices`; `progress` is told the share that is done. Fails where
/// the model does.
pub fn score(
    scorer: &Scorer,
    images: &Images,
    indices: impl IntoIterator<Item = usize>,
    needs: Needs,
    progress: &dyn Fn(f64),
) -> Result<Vec<RowSignals>, Error> {
    let model = scorer.model();
    let indices: Vec<usize> = indices.into_iter().collect();
    let mut scored = Vec::with_capacity(indices.len());
    for some in indices.chunks(AT_ONCE) {
        let pixels = some.iter().map(|&index| images.image(index));
        let batch = rows(model.domain(), pixels, model.device())?;
        scored.extend(scorer.score(&batch, needs)?);
        progress(scored.len() as f64 / indices.len() as f64);
    }
    Ok(scored)
}

/// Images scored at once.
const AT_ONCE: usize = 256;
