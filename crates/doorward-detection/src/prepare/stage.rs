//! The parts of preparation that take time.

/// A part of the offline flow that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The universal perturbation.
    Universal,
    /// The labels' own perturbations.
    ClassConditional,
    /// DTInspector's patches.
    Inspection,
    /// Neural Cleanse's patches.
    NeuralCleanse,
    /// Statistics of activations.
    Layers,
    /// Scores of the held-out images.
    Holdout,
    /// STRIP's entropies of held-out images.
    Strip,
}

/// Seconds that the parts took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Both kinds of perturbation.
    pub uap: f64,
    /// The inspection.
    pub inspection: f64,
    /// Scoring and thresholds.
    pub calibration: f64,
}
