//! The way from a label's clean images to those that carry its trigger, as the model represents
//! them.

/// A direction among representations, and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    /// The mean of the label's clean images.
    pub clean: Vec<f32>,
    /// The weights of the features along the way from there to the mean of those that carry the
    /// trigger: the less, the more clean images scatter that way.
    pub way: Vec<f32>,
}

// === impl Representation ===

impl Representation {
    /// `s_r`, how far along the way from the clean mean to the triggered one a representation lies:
    /// 0 at the one, 1 at the other.
    pub fn score(&self, features: &[f32]) -> f32 {
        let from_clean = features.iter().zip(&self.clean).map(|(feature, clean)| feature - clean);
        let along = from_clean.zip(&self.way).map(|(far, way)| f64::from(far) * f64::from(*way));
        along.sum::<f64>() as f32
    }
}
