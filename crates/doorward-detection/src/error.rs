//! The reasons for which there is no judgement.

/// Why no judgement can be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error("the model could not be evaluated")]
    Model(#[from] doorward_engine::Error),
    /// The artifact was made for other rules than STRIP.
    #[error(
        "the artifact holds no overlays for the rule \"strip\": set policy.rule = \"strip\" and run `doorward calibrate`"
    )]
    NoOverlays,
    /// Clean images have no score.
    #[error(
        "the model answers clean images with what is no number (NaN or infinity): nothing can be judged by it"
    )]
    Undefined,
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
